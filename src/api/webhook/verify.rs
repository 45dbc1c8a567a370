//! Whether a request comes from the forge: its signature over the raw body, compared in constant time.
//!
//! | forge | header | what it holds |
//! |---|---|---|
//! | GitHub | `X-Hub-Signature-256` | `sha256=` and HMAC-SHA256 of the body in hexadecimal |
//! | Forgejo | `X-Forgejo-Signature` | the same without the prefix |
//! | Gitea | `X-Gitea-Signature` | the same |
//! | GitLab, signing token | `webhook-signature` | `v1,` and HMAC-SHA256 of `id.timestamp.body` in base64 |
//! | GitLab, secret token | `X-Gitlab-Token` | the secret itself |
//!
//! Pure: `now` is an argument.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::{HeaderMap, header::HeaderValue};
use sha2::Sha256;

use crate::clock::Wall;

/// A signed time may be so far from ours.
const TOLERANCE_US: u64 = 300 * 1_000_000;
/// The longest name of a delivery.
const LONGEST_ID: usize = 128;
/// Whoever sends it names the delivery in one of these.
const IDS: [&str; 6] = [
    "x-github-delivery",
    "x-forgejo-delivery",
    "x-gitea-delivery",
    "webhook-id",
    "idempotency-key",
    "x-gitlab-event-uuid",
];

/// Why a request is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No header that we know.
    Unsigned,
    /// The signature is wrong.
    Signature,
    /// It is signed for another time.
    Stale,
}

impl Refused {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Signature => "wrong-signature",
            Self::Stale => "stale",
        }
    }
}

/// Checks a request. The name of the delivery, if it has one.
pub(super) fn verify(headers: &HeaderMap, body: &[u8], secret: &str, now: Wall) -> Result<Option<String>, Refused> {
    let get = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let good = if let Some(signature) = get("x-hub-signature-256") {
        let digits = signature.strip_prefix(b"sha256=").ok_or(Refused::Signature)?;
        is_hex_of(digits, &[body], secret.as_bytes())
    } else if let Some(signature) = get("x-forgejo-signature").or_else(|| get("x-gitea-signature")) {
        is_hex_of(signature, &[body], secret.as_bytes())
    } else if let Some(signatures) = get("webhook-signature") {
        let (id, time) = (get("webhook-id").unwrap_or_default(), get("webhook-timestamp").unwrap_or_default());
        let good = standard(signatures, &[id, b".", time, b".", body], secret);
        if good && !is_fresh(time, now) {
            return Err(Refused::Stale);
        }
        good
    } else if let Some(token) = get("x-gitlab-token") {
        // The codes of both are compared, so that the time tells nothing about the secret.
        is_code_of(&code(&[token], secret.as_bytes()), &[secret.as_bytes()], secret.as_bytes())
    } else {
        return Err(Refused::Unsigned);
    };
    if !good {
        return Err(Refused::Signature);
    }
    let id = IDS.iter().find_map(|name| headers.get(*name)).and_then(|value| value.to_str().ok());
    Ok(id.filter(|id| !id.is_empty() && id.len() <= LONGEST_ID).map(str::to_owned))
}

/// Any of the signatures of the scheme of `standard-webhooks`; a secret `whsec_…` is base64.
fn standard(signatures: &[u8], parts: &[&[u8]], secret: &str) -> bool {
    let decoded = secret.strip_prefix("whsec_").and_then(|text| BASE64_STANDARD.decode(text).ok());
    let key = decoded.unwrap_or_else(|| secret.as_bytes().to_vec());
    let each = signatures.split(|byte| *byte == b' ').filter_map(|one| one.strip_prefix(b"v1,"));
    let mut codes = each.filter_map(|text| BASE64_STANDARD.decode(text).ok());
    codes.any(|code| is_code_of(&code, parts, &key))
}

fn is_fresh(time: &[u8], now: Wall) -> bool {
    let seconds = std::str::from_utf8(time).ok().and_then(|text| text.parse::<i64>().ok());
    seconds.is_some_and(|s| s.saturating_mul(1_000_000).abs_diff(now.as_micros()) <= TOLERANCE_US)
}

fn mac(parts: &[&[u8]], key: &[u8]) -> Option<Hmac<Sha256>> {
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(part);
    }
    Some(mac)
}

fn code(parts: &[&[u8]], key: &[u8]) -> Vec<u8> {
    mac(parts, key).map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default()
}

fn is_code_of(code: &[u8], parts: &[&[u8]], key: &[u8]) -> bool {
    mac(parts, key).is_some_and(|mac| mac.verify_slice(code).is_ok())
}

fn is_hex_of(digits: &[u8], parts: &[&[u8]], key: &[u8]) -> bool {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(value(*high)? << 4 | value(*low)?),
        _ => None,
    };
    let code: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    code.is_some_and(|code| is_code_of(&code, parts, key))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        all.iter().map(pair).collect()
    }

    const NOW: Wall = Wall::from_micros(1_674_087_231_000_000);

    /// The example of GitHub's own documentation ("Validating webhook deliveries").
    #[test]
    fn the_example_of_the_forge_s_documentation_is_believed_and_nothing_near_it() {
        let (secret, body) = ("It's a Secret to Everybody", b"Hello, World!");
        let right = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let signed = headers(&[("X-Hub-Signature-256", &format!("sha256={right}")), ("X-GitHub-Delivery", "72d3162e")]);
        assert_eq!(verify(&signed, body, secret, NOW), Ok(Some("72d3162e".into())));
        assert_eq!(verify(&signed, b"Hello, World?", secret, NOW), Err(Refused::Signature));
        assert_eq!(verify(&signed, body, "another", NOW), Err(Refused::Signature));
        for wrong in [right, &format!("sha256={}", &right[..62]), "sha256=", "sha256=zz", &format!("sha1={right}")] {
            let signed = headers(&[("X-Hub-Signature-256", wrong)]);
            assert_eq!(verify(&signed, body, secret, NOW), Err(Refused::Signature), "{wrong}");
        }
        for name in ["X-Gitea-Signature", "X-Forgejo-Signature"] {
            assert_eq!(verify(&headers(&[(name, right)]), body, secret, NOW), Ok(None), "{name}");
        }
        let both = headers(&[("X-Forgejo-Signature", "00"), ("X-Gitea-Signature", right)]);
        assert_eq!(verify(&both, body, secret, NOW), Err(Refused::Signature), "a bad one is not rescued");
    }

    #[test]
    fn a_gitlab_token_is_the_secret_and_nothing_else() {
        let token =
            |token| verify(&headers(&[("X-Gitlab-Token", token), ("X-Gitlab-Event-UUID", "u")]), b"{}", "s3cret", NOW);
        assert_eq!(token("s3cret"), Ok(Some("u".into())));
        for wrong in ["s3cre", "s3crets", "", "S3cret"] {
            assert_eq!(token(wrong), Err(Refused::Signature), "{wrong}");
        }
        assert_eq!(verify(&headers(&[]), b"{}", "s3cret", NOW), Err(Refused::Unsigned));
    }

    /// Key, message and signature as the specification "Standard Webhooks" has them.
    #[test]
    fn a_gitlab_signing_token_signs_name_time_and_body() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let key = BASE64_STANDARD.decode(&secret[6..]).unwrap();
        let body = br#"{"object_kind":"push"}"#;
        let sign = |time: &str| BASE64_STANDARD.encode(code(&[b"msg_1", b".", time.as_bytes(), b".", body], &key));
        let signed = |time: &str, signature: &str| {
            headers(&[("webhook-id", "msg_1"), ("webhook-timestamp", time), ("webhook-signature", signature)])
        };
        let now = "1674087231";
        let two = format!("v1,AAAA v1,{}", sign(now));
        assert_eq!(verify(&signed(now, &two), body, secret, NOW), Ok(Some("msg_1".into())));
        let old = "1674086231";
        assert_eq!(verify(&signed(old, &format!("v1,{}", sign(old))), body, secret, NOW), Err(Refused::Stale));
        let moved = signed(now, &format!("v1,{}", sign(old)));
        assert_eq!(verify(&moved, body, secret, NOW), Err(Refused::Signature), "the time is signed too");
    }
}
