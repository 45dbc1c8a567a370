//! The listener with the bytes that forges send.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// A push as GitHub sends it, in the headers that matter, and as others do.
fn push(headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /hooks/git HTTP/1.1\r\nHost: router:9470\r\nUser-Agent: GitHub-Hookshot/044aadd\r\n\
        Content-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

async fn send(to: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // Whoever is refused early does not read the rest.
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text).await;
    text.lines().next().unwrap_or_default().to_owned()
}

const BODY: &str = r#"{"ref":"refs/heads/main","after":"0f1d","repository":{"full_name":"net/network"}}"#;
const GITHUB: &str = "X-GitHub-Event: push\r\nX-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-4c9367dc0958\r\n\
    X-Hub-Signature-256: sha256=";

fn signature(body: &str) -> String {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"s3cret").unwrap();
    mac.update(body.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn a_push_makes_the_source_be_read_and_nothing_else_does() {
    let (sender, mut commands) = mpsc::channel(4);
    let hooks = Arc::new(Tally::default());
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = webhook(any, "s3cret".into(), sender, Arc::clone(&hooks)).await.unwrap();
    let to = listener.address;
    let good = signature(BODY);
    let wrong = signature("another body");

    assert!(send(to, &push(&format!("{GITHUB}{wrong}\r\n"), BODY)).await.contains("401"));
    assert!(send(to, &push("X-GitHub-Event: push\r\n", BODY)).await.contains("401"));
    assert!(send(to, "GET /hooks/git HTTP/1.1\r\nHost: r\r\n\r\n").await.contains("405"));
    assert!(send(to, "POST / HTTP/1.1\r\nHost: r\r\nContent-Length: 0\r\n\r\n").await.contains("404"));
    let large = "a".repeat(LARGEST + 1);
    let _ = send(to, &push(&format!("{GITHUB}{good}\r\n"), &large)).await;
    assert!(commands.try_recv().is_err(), "nothing that was refused has an effect");

    assert!(send(to, &push(&format!("{GITHUB}{good}\r\n"), BODY)).await.contains("202"));
    assert!(matches!(commands.recv().await, Some(Command::Fetch)));
    assert!(send(to, &push(&format!("{GITHUB}{good}\r\n"), BODY)).await.contains("200"), "the same delivery again");
    let gitea = format!("X-Gitea-Event: push\r\nX-Gitea-Delivery: f6266f16\r\nX-Gitea-Signature: {good}\r\n");
    assert!(send(to, &push(&gitea, BODY)).await.contains("202"));
    let gitlab = "X-Gitlab-Event: Push Hook\r\nX-Gitlab-Event-UUID: 13792a34\r\nX-Gitlab-Token: s3cret\r\n";
    assert!(send(to, &push(gitlab, BODY)).await.contains("202"));
    assert!(matches!(commands.recv().await, Some(Command::Fetch)), "what came in the pause is not lost");

    let counts = hooks.counts();
    let count = |result: &str| counts.get(result).copied().unwrap_or_default();
    assert_eq!((count("accepted"), count("repeated"), count("unsigned"), count("wrong-signature")), (3, 1, 1, 1));
    assert_eq!((count("no-post"), count("no-such-path"), count("too-large")), (1, 1, 1), "{counts:?}");
}
