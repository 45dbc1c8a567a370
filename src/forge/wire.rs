//! The words of each forge: requests and what their answers mean.
//!
//! - GitHub: `POST /repos/OWNER/NAME/statuses/SHA`
//! - GitLab: `POST /projects/ID/statuses/SHA`, the path of the project encoded; it has no `error`, and refuses `pending` for
//!   what is pending
//! - Gitea and Forgejo: `POST /repos/OWNER/NAME/statuses/SHA`

use std::time::Duration;

use hyper::{
    Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, RETRY_AFTER},
};
use serde_json::json;

use super::{
    Forge, Spec,
    verdict::{State, Told},
};
use crate::{
    clock::Wall,
    http::{Answer, HttpError, Request},
};

/// Nobody is left alone for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Answers are only looked at for why something was refused.
const MAX_ANSWER: usize = 64 << 10;
const GITHUB_VERSION: HeaderName = HeaderName::from_static("x-github-api-version");

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is told.
    Taken,
    /// It will never be taken.
    Refused {
        /// Why.
        why: String,
    },
    /// It may be taken later.
    Later {
        /// Why not now.
        why: String,
        /// How long the forge wants to be left alone, if it says so.
        wait: Option<Duration>,
    },
}

/// The request that tells it.
pub(super) fn request(spec: &Spec, site: &str, told: &Told, token: &str) -> Result<Request, HttpError> {
    let Spec { forge, api, project, .. } = spec;
    let (context, commit) = (format!("patronus/{site}"), &told.commit);
    let url = match forge {
        Forge::GitHub | Forge::Gitea => format!("{api}/repos/{project}/statuses/{commit}"),
        Forge::GitLab => format!("{api}/projects/{}/statuses/{commit}", project.replace('/', "%2F")),
    };
    let state = word(*forge, told.state);
    let body = match forge {
        Forge::GitHub | Forge::Gitea => json!({"state": state, "context": context, "description": told.text}),
        Forge::GitLab => json!({"state": state, "name": context, "description": told.text}),
    };
    let mut request = Request::new(Method::POST, url.parse()?);
    request.max_answer = MAX_ANSWER;
    request.body = body.to_string().into();
    let request = request.header(CONTENT_TYPE, "application/json")?;
    match forge {
        Forge::GitHub => request
            .header(AUTHORIZATION, &format!("Bearer {token}"))?
            .header(ACCEPT, "application/vnd.github+json")?
            .header(GITHUB_VERSION, "2022-11-28"),
        Forge::GitLab => request.header(AUTHORIZATION, &format!("Bearer {token}"))?.header(ACCEPT, "application/json"),
        Forge::Gitea => request.header(AUTHORIZATION, &format!("token {token}"))?.header(ACCEPT, "application/json"),
    }
}

const fn word(forge: Forge, state: State) -> &'static str {
    match (forge, state) {
        (_, State::Pending) => "pending",
        (_, State::Success) => "success",
        (Forge::GitLab, _) => "failed",
        (_, State::Failure) => "failure",
        (_, State::Error) => "error",
    }
}

/// What an answer means.
pub(super) fn heard(forge: Forge, answer: &Answer, now: Wall) -> Heard {
    let status = answer.status;
    let why = |hint: &str| format!("{} {hint}", status.as_u16());
    match status {
        _ if status.is_success() => Heard::Taken,
        StatusCode::BAD_REQUEST if forge == Forge::GitLab && stays(answer) => Heard::Taken,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
            Heard::Refused { why: why("(it does not know the commit, or has too many statuses of it)") }
        }
        _ => {
            let hint = match status {
                StatusCode::UNAUTHORIZED => "(the token is not accepted)",
                StatusCode::FORBIDDEN => "(the token may not set the status of commits, or it asked too often)",
                StatusCode::NOT_FOUND => "(no such project, or the token may not see it)",
                StatusCode::TOO_MANY_REQUESTS => "(it was asked too often)",
                _ if status.is_redirection() => "(it is elsewhere now; `report.api` is not followed there)",
                _ => "(it cannot at the moment)",
            };
            Heard::Later { why: why(hint), wait: wait(answer, now) }
        }
    }
}

/// GitLab has a status that is pending already.
fn stays(answer: &Answer) -> bool {
    String::from_utf8_lossy(&answer.body).contains("Cannot transition status")
}

/// How long the forge wants to be left alone: `Retry-After`, or the end of GitHub's rate limit.
fn wait(answer: &Answer, now: Wall) -> Option<Duration> {
    let number = |name: &str| answer.headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let limited = || {
        let end = number("x-ratelimit-reset").filter(|_| number("x-ratelimit-remaining") == Some(0))?;
        Some(end.saturating_sub(u64::try_from(now.as_micros() / 1_000_000).unwrap_or(0)))
    };
    let seconds = number(RETRY_AFTER.as_str()).or_else(limited)?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;
    use crate::source::git::Secret;

    fn spec(forge: Forge, project: &str) -> Spec {
        let token = Secret::Environment("TOKEN".into());
        Spec { forge, api: "https://forge.example/api".into(), project: project.into(), token, ca: None }
    }

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Answer {
        let headers: HeaderMap =
            headers.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect();
        Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: body.into() }
    }

    #[test]
    fn states_have_the_words_of_each_forge() {
        let all = [State::Pending, State::Success, State::Failure, State::Error];
        let words = |forge| all.map(|state| word(forge, state));
        assert_eq!(words(Forge::GitHub), ["pending", "success", "failure", "error"]);
        assert_eq!(words(Forge::Gitea), ["pending", "success", "failure", "error"]);
        assert_eq!(words(Forge::GitLab), ["pending", "success", "failed", "failed"]);
    }

    #[test]
    fn answers_mean_taken_never_or_later() {
        let now = Wall::from_micros(1_000_000_000);
        let hear = |forge, answer: &Answer| heard(forge, answer, now);
        assert_eq!(hear(Forge::GitHub, &answer(201, &[], "")), Heard::Taken);
        let stays = answer(400, &[], r#"{"message":"Cannot transition status via :enqueue from :pending"}"#);
        assert_eq!(hear(Forge::GitLab, &stays), Heard::Taken);
        for forge in [Forge::GitHub, Forge::GitLab] {
            assert!(matches!(hear(forge, &answer(422, &[], "")), Heard::Refused { .. }));
        }
        assert!(matches!(hear(Forge::GitHub, &stays), Heard::Refused { .. }));
        for (status, headers, seconds) in [
            (401, &[][..], None),
            (302, &[("location", "https://elsewhere.example/")], None),
            (503, &[("retry-after", "7")], Some(7)),
            (429, &[("retry-after", "999999")], Some(3600)),
            (429, &[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], None),
            (403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1060")], Some(60)),
            (403, &[("x-ratelimit-remaining", "9"), ("x-ratelimit-reset", "1060")], None),
        ] {
            let Heard::Later { why, wait } = hear(Forge::GitHub, &answer(status, headers, "")) else { panic!() };
            assert_eq!(wait, seconds.map(Duration::from_secs), "{why}");
            assert!(why.starts_with(&status.to_string()), "{why}");
        }
    }

    #[test]
    fn a_token_is_not_shown_and_one_with_a_line_break_is_refused() {
        let told = Told { commit: "a".repeat(40), state: State::Error, text: "x".into() };
        let request = super::request(&spec(Forge::GitHub, "team/network"), "berlin", &told, "s3cret").unwrap();
        assert!(!format!("{request:?}").contains("s3cret"));
        let error = super::request(&spec(Forge::GitHub, "team/network"), "berlin", &told, "s3cret\nx").unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
    }
}
