//! What probes talk to: UDP echo, STAMP, TCP, HTTP, HTTPS and DNS at one address, and ways in which they fail.

use std::{
    io::{self, Read},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, rdata::A},
};
use patronus::probe::Reflector;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// How often a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// What is wrong with the servers.
#[derive(Debug, Default)]
pub struct Ills {
    /// The name server answers `SERVFAIL`.
    pub dns: AtomicBool,
    /// Every page is a redirect to a login, in place of the real servers and with a certificate of its own.
    pub portal: AtomicBool,
    end: AtomicBool,
}

/// Servers that run; dropped, they end.
pub struct Servers {
    /// Their ills.
    pub ills: Arc<Ills>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.ills.end.store(true, Ordering::Relaxed);
    }
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    /// One for `www.example.org`, signed by itself, in this directory; its certificate is also the authority to trust.
    pub fn new(directory: &Path, name: &str) -> Self {
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=www.example.org"]);
        openssl.args([
            "-addext",
            "subjectAltName=DNS:www.example.org",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        let done = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Self { certificate: std::fs::read(certificate).unwrap(), key: std::fs::read(key).unwrap() }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let chain = vec![CertificateDer::from_pem_slice(&self.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&self.key).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// Starts all of them at an address in the namespace of the calling thread: UDP 7 (echo), 53 (DNS) and 862 (STAMP), TCP
/// 80 (HTTP), 443 (HTTPS) and 8080 (nothing but a handshake). `genuine` is what HTTPS shows, `false` what a portal does.
pub fn start(address: IpAddr, [genuine, own]: [&Identity; 2]) -> Servers {
    let ills = Arc::new(Ills::default());
    let udp = |port: u16| {
        let socket = UdpSocket::bind((address, port)).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        (socket, Arc::clone(&ills))
    };
    let (socket, end) = udp(7);
    thread::spawn(move || serve(&socket, &end, |bytes, _| Some(bytes.to_vec())));
    let (socket, end) = udp(53);
    thread::spawn(move || serve(&socket, &end, look_up));
    let end = Arc::clone(&ills);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _reflector = Reflector::start((address, 862).into(), true).unwrap();
            while !end.end.load(Ordering::Relaxed) {
                tokio::time::sleep(LOOK).await;
            }
        });
    });
    let configs = [genuine.config(), own.config()];
    tcp((address, 8080), &ills, |_, _| Ok(()));
    tcp((address, 80), &ills, page);
    tcp((address, 443), &ills, move |stream, ills| {
        let config = &configs[usize::from(ills.portal.load(Ordering::Relaxed))];
        let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        page(StreamOwned::new(session, stream), ills)
    });
    Servers { ills }
}

fn serve(socket: &UdpSocket, ills: &Ills, answer: impl Fn(&[u8], &Ills) -> Option<Vec<u8>>) {
    let mut bytes = [0; 2048];
    while !ills.end.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut bytes)
            && let Some(answer) = answer(&bytes[..length], ills)
        {
            // Whoever asked may be gone, or cut off.
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn look_up(bytes: &[u8], ills: &Ills) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(bytes).ok()?;
    message.metadata.message_type = MessageType::Response;
    if ills.dns.load(Ordering::Relaxed) {
        message.metadata.response_code = ResponseCode::ServFail;
    } else {
        let name = message.queries.first()?.name().clone();
        message.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
    }
    message.to_vec().ok()
}

fn tcp<F>(at: (IpAddr, u16), ills: &Arc<Ills>, speak: F)
where
    F: Fn(TcpStream, &Ills) -> io::Result<()> + Send + Sync + 'static,
{
    let (listener, ills, speak) = (TcpListener::bind(at).unwrap(), Arc::clone(ills), Arc::new(speak));
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        while !ills.end.load(Ordering::Relaxed) {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            let (ills, speak) = (Arc::clone(&ills), Arc::clone(&speak));
            // One connection must not wait for another whose packets are lost.
            thread::spawn(move || {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                speak(stream, &ills)
            });
        }
    });
}

fn page(mut stream: impl Read + io::Write, ills: &Ills) -> io::Result<()> {
    let (mut asked, mut part) = (Vec::new(), [0; 1024]);
    while !asked.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => asked.extend_from_slice(&part[..n]),
        }
    }
    let answer: &[u8] = if ills.portal.load(Ordering::Relaxed) {
        b"HTTP/1.1 302 Found\r\nlocation: http://login.example/\r\ncontent-length: 0\r\n\r\n"
    } else {
        b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nsuccess"
    };
    stream.write_all(answer)?;
    stream.flush()
}
