//! The client against servers that answer as they like, in the clear and over TLS.

use std::{net::SocketAddr, process::Command};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// Answers one connection with these bytes and gives back what was asked.
async fn serve(answer: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        answer_once(stream, answer).await
    });
    (address, task)
}

async fn answer_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut asked = Vec::new();
    let whole = |asked: &[u8]| {
        let text = String::from_utf8_lossy(asked).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        (body.len() >= length.map_or(0, |l| l.parse().unwrap())).then_some(text)
    };
    loop {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await.unwrap_or(0);
        asked.extend_from_slice(&part[..n]);
        if let Some(text) = whole(&asked) {
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
            return text;
        }
        if n == 0 {
            return String::from_utf8_lossy(&asked).into_owned();
        }
    }
}

fn get(url: &str) -> Request {
    Request::new(Method::GET, url.parse().unwrap())
}

fn client() -> Client {
    Client::new(None).unwrap()
}

#[tokio::test]
async fn a_request_is_on_the_wire_as_it_was_meant() {
    let (address, server) = serve("HTTP/1.1 201 Created\r\nx-kind: a\r\ncontent-length: 2\r\n\r\nok").await;
    let mut request = Request::new(Method::POST, format!("http://{address}/a/b?c=d").parse().unwrap());
    request.body = Bytes::from_static(b"{\"a\":1}");
    let request = request.header(hyper::header::AUTHORIZATION, "Bearer secret").unwrap();
    assert!(!format!("{request:?}").contains("secret"));
    let answer = client().send(request).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (201, &b"ok"[..]));
    assert_eq!(answer.headers["x-kind"], "a");
    let asked = server.await.unwrap();
    assert!(asked.starts_with("POST /a/b?c=d HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: {address}\r\n")) && asked.ends_with("\r\n\r\n{\"a\":1}"), "{asked}");
    assert!(asked.contains("authorization: Bearer secret\r\n") && asked.contains("user-agent: patronus/"), "{asked}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (address, _server) =
        serve("HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n").await;
    let answer = client().send(get(&format!("http://{address}/"))).await.unwrap();
    assert_eq!(answer.status.as_u16(), 302);
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused_with_or_without_a_length() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n12345",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345",
    ] {
        let (address, _server) = serve(answer).await;
        let mut request = get(&format!("http://{address}/"));
        request.max_answer = 4;
        let error = client().send(request).await.unwrap_err();
        assert!(matches!(error, HttpError::TooLarge { limit: 4, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_body_that_nobody_wants_may_be_of_any_size_and_need_not_come() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n12345",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n",
    ] {
        let (address, _server) = serve(answer).await;
        let mut request = get(&format!("http://{address}/"));
        request.max_answer = 0;
        let answer = client().send(request).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_the_timeout_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut request = get(&format!("http://{}/", listener.local_addr().unwrap()));
    request.timeout = Duration::from_millis(50);
    let error = client().send(request).await.unwrap_err();
    assert!(error.to_string().ends_with("did not answer within 50 ms"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_or_is_no_http_is_an_error() {
    for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n12345", "SSH-2.0-OpenSSH_9.2\r\n", ""] {
        let (address, _server) = serve(answer).await;
        let error = client().send(get(&format!("http://{address}/"))).await.unwrap_err();
        assert!(matches!(error, HttpError::Broke { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn nobody_at_the_port_is_said_with_host_and_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client().send(get(&format!("http://{address}/secret"))).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot connect to {address}"));
}

#[tokio::test]
async fn a_connection_can_be_brought_along() {
    let (address, server) = serve("HTTP/1.1 204 No Content\r\n\r\n").await;
    let connect = |to: Authority| async move {
        assert_eq!(to.to_string(), "[2001:db8::1]:8080");
        TcpStream::connect(address).await
    };
    let answer = client().send_over(get("http://[2001:db8::1]:8080"), connect).await.unwrap();
    assert_eq!(answer.status.as_u16(), 204);
    assert!(server.await.unwrap().contains("host: [2001:db8::1]:8080\r\n"));
}

#[test]
fn urls_that_cannot_be_asked_are_refused() {
    for (url, why) in [
        ("ftp://a/", "neither"),
        ("/path", "neither"),
        ("https://user:hunter2@a/", "by reference"),
        ("https://", "URL"),
        ("http://a b/", "URL"),
    ] {
        let error = url.parse::<Url>().unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("hunter2"), "{url}: {error}");
    }
    let usual: Url = "https://forge.example/api".parse().unwrap();
    assert_eq!((usual.host().as_str(), usual.authority().port), ("forge.example", 443));
    assert!(get("http://a/").header(hyper::header::AUTHORIZATION, "a\r\nb: c").is_err());
}

/// A certificate for `localhost` and 127.0.0.1 that signs itself, and its key; made by openssl(1).
fn certificate(dir: &Path, constraints: &[&str]) -> (std::path::PathBuf, std::path::PathBuf) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(constraints)
        .arg("-keyout")
        .args([key.as_os_str(), "-out".as_ref(), cert.as_os_str()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (cert, key)
}

/// A TLS server that answers so many connections.
async fn serve_tls(cert: &Path, key: &Path) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(cert).unwrap().collect::<Result<_, _>>().unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_once(stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsafe").await;
            }
        }
    });
    address
}

#[tokio::test]
async fn over_tls_only_whom_the_authorities_name_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), &["-addext", "basicConstraints=critical,CA:FALSE"]);
    let port = serve_tls(&cert, &key).await.port();
    let trusting = Client::new(Some(&cert)).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let answer = trusting.send(get(&format!("https://{host}:{port}/"))).await.unwrap();
        assert_eq!(&answer.body[..], b"safe");
    }
    let elsewhere = |_| async move { TcpStream::connect(("127.0.0.1", port)).await };
    let error = trusting.send_over(get("https://forge.example/"), elsewhere).await.unwrap_err();
    assert!(matches!(error, HttpError::Tls { .. }), "{error:?}");
    let error = client().send(get(&format!("https://localhost:{port}/"))).await.unwrap_err();
    assert!(matches!(error, HttpError::Tls { .. } | HttpError::NoAuthorities), "{error:?}");
}

#[tokio::test]
async fn a_server_that_shows_an_authority_s_certificate_is_refused_in_words_that_help() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), &[]);
    let port = serve_tls(&cert, &key).await.port();
    let error = Client::new(Some(&cert)).unwrap().send(get(&format!("https://localhost:{port}/"))).await.unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("basicConstraints=critical,CA:FALSE") && !why.contains("OtherError"), "{why}");
}

#[test]
fn a_file_of_authorities_that_is_none_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, "no certificate\n").unwrap();
    for path in [file, dir.path().join("absent.pem")] {
        let error = Client::new(Some(&path)).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
