//! Whether services answer: the Git remote, a management station. A refused connection is none: a policy of ours that
//! rejects looks the same.

use std::{collections::BTreeSet, time::Duration};

use tokio::net::TcpStream;

/// Whoever does not answer within this time does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those of the services, as `HOST:PORT`, that answer now. The connection leaves as the router's own traffic does.
pub(super) async fn ask(services: Vec<String>) -> BTreeSet<String> {
    let one = |service: String| async move {
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(&service)).await;
        matches!(connected, Ok(Ok(_))).then_some(service)
    };
    futures_util::future::join_all(services.into_iter().map(one)).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_port_is_an_answer_and_a_refusal_is_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let closed = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap().to_string()
        };
        let found = ask(vec![open.clone(), closed, "nowhere.invalid:1".into()]).await;
        assert_eq!(found, BTreeSet::from([open]));
    }
}
