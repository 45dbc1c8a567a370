//! A forge that takes the status of commits, and says what it likes.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::daemon::PATIENCE;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Post {
    /// `POST /path`.
    pub line: String,
    /// Names in lower case, sorted.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Value,
    /// What it was answered.
    pub status: u16,
}

impl Post {
    /// The commit, its state and the description.
    pub fn told(&self) -> (String, String, String) {
        let text = |field: &str| self.body[field].as_str().unwrap_or_default().to_owned();
        let commit = self.line.rsplit('/').next().unwrap_or_default().to_owned();
        (commit, text("state"), text("description"))
    }
}

/// The forge. Dropped, it is gone, and its port is free.
pub struct Forge {
    posts: Arc<Mutex<Vec<Post>>>,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    /// Where it listens.
    pub at: SocketAddr,
}

impl Forge {
    /// One that gives these answers (status, headers, body), one after the other, and then 201 to everybody.
    pub fn new(listener: TcpListener, answers: &[(u16, &str, &str)]) -> Self {
        let at = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (posts, end) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut answers: VecDeque<(u16, String, String)> =
            answers.iter().map(|(status, head, body)| (*status, (*head).to_owned(), (*body).to_owned())).collect();
        let (kept, ended) = (Arc::clone(&posts), Arc::clone(&end));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let answer = answers.pop_front().unwrap_or((201, String::new(), "{}".into()));
                // Whoever broke off was not heard.
                if let Ok(post) = serve(stream, &answer) {
                    kept.lock().unwrap().push(post);
                }
            }
        });
        Self { posts, end, thread: Some(thread), at }
    }

    /// All that it was told.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// Waits for a word that it took, and gives it back.
    pub fn wait(&self, what: &str, fits: impl Fn(&(String, String, String)) -> bool) -> (String, String, String) {
        let start = Instant::now();
        loop {
            let taken = self.posts().into_iter().filter(|post| post.status < 300).map(|post| post.told());
            if let Some(found) = taken.into_iter().rev().find(|told| fits(told)) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}: {:#?}", self.posts());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, (status, head, body): &(u16, String, String)) -> io::Result<Post> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut headers: Vec<(String, String)> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    headers.sort();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().unwrap());
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    let answer =
        format!("HTTP/1.1 {status} X\r\n{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    reader.get_mut().write_all(answer.as_bytes())?;
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_owned();
    Ok(Post { line, headers, body: serde_json::from_slice(&bytes).unwrap_or_default(), status: *status })
}
