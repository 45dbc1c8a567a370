//! A test in network namespaces of its own: one thread, one namespace, one single-threaded runtime.

use std::{
    future::Future,
    io::Write as _,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};

/// Runs `f` on a new thread in a new network namespace with the loopback up, and gives back its result.
/// Panics go on in the caller. Several can run at once, also nested: each has its own thread.
pub fn in_netns<F, Fut, T>(f: F) -> T
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        ip("link set lo up");
        runtime.block_on(f())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `ip` with these words here, and gives back what it prints.
pub fn ip(words: &str) -> String {
    run("ip", &words.split_whitespace().collect::<Vec<_>>(), "")
}

/// Runs `ip -batch` here, with `-4` or `-6` for all lines.
pub fn ip_batch(family: &str, lines: &str) -> String {
    run("ip", &[family, "-batch", "-"], lines)
}

/// Waits until something holds, at most five seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not within five seconds: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Loads an nft script here.
pub fn nft(script: &str) -> String {
    run("nft", &["-f", "-"], script)
}

/// Runs a program here; a failure is a panic with what it said.
pub fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let piped = || Stdio::piped();
    let mut child =
        Command::new(program).args(arguments).stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// Two ends of a virtual cable in this namespace, both up; the first has the address.
pub fn veth(name: &str, peer: &str, address: &str) {
    ip(&format!("link add {name} type veth peer name {peer}"));
    ip(&format!("address add {address} dev {name}"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {peer} up"));
}

/// Adds an IPv6 address that is usable at once.
pub fn address6(name: &str, address: &str) {
    ip(&format!("-6 address add {address} dev {name} nodad"));
}
