//! Whether services answer: the Git remote, a management station. A refused connection is an answer too.

use std::{collections::BTreeSet, io::ErrorKind, time::Duration};

use tokio::net::TcpStream;

/// Whoever does not answer within this time does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those of the services, as `HOST:PORT`, that answer now. The connection leaves as the router's own traffic does.
pub(super) async fn ask(services: Vec<String>) -> BTreeSet<String> {
    let one = |service: String| async move {
        let answered = match tokio::time::timeout(PATIENCE, TcpStream::connect(&service)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
            Err(_) => false,
        };
        answered.then_some(service)
    };
    futures_util::future::join_all(services.into_iter().map(one)).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_port_and_a_refusal_are_answers_and_silence_is_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let closed = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap().to_string()
        };
        let found = ask(vec![open.clone(), closed.clone(), "nowhere.invalid:1".into()]).await;
        assert_eq!(found, BTreeSet::from([open, closed]));
    }
}
