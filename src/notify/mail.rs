//! A mail over SMTP.

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message as Letter, Tokio1Executor,
    message::header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls as Protection, TlsParameters},
    },
};

use uuid::Uuid;

use super::{Failed, Mail, Message, Tls, send::secret};
use crate::{http, units::chain};

/// Sends one mail over a connection of its own.
pub(super) async fn send(mail: &Mail, message: &Message) -> Result<(), Failed> {
    let server = mail.clone();
    // Reads files: the password and the authorities.
    let opened = tokio::task::spawn_blocking(move || open(&server)).await;
    let transport = opened.map_err(|error| Failed::again(error.to_string()))??;
    let letter = letter(mail, message).map_err(|error| Failed::for_good(error.to_string()))?;
    let sent = tokio::time::timeout(mail.timeout, transport.send(letter)).await;
    let place = format!("{}:{}", mail.host, mail.port);
    match sent {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            let why = format!("{place}: {}", http::plainly(chain(&error)));
            Err(if error.is_permanent() { Failed::for_good(why) } else { Failed::again(why) })
        }
        Err(_) => Err(Failed::again(format!("{place} did not take the mail within {} s", mail.timeout.as_secs()))),
    }
}

fn open(mail: &Mail) -> Result<AsyncSmtpTransport<Tokio1Executor>, Failed> {
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(mail.host.clone())
        .port(mail.port)
        .timeout(Some(mail.timeout))
        .tls(protection(mail)?);
    if let Some(login) = &mail.login {
        builder = builder.credentials(Credentials::new(login.username.clone(), secret(&login.secret)?));
    }
    Ok(builder.build())
}

fn protection(mail: &Mail) -> Result<Protection, Failed> {
    if mail.tls == Tls::None {
        return Ok(Protection::None);
    }
    let mut parameters = TlsParameters::builder(mail.host.clone());
    if let Some(file) = &mail.ca {
        let wrong = |why: String| Failed::for_good(format!("the authorities {}: {why}", file.display()));
        let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
        parameters = parameters.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| wrong(chain(&e)))?);
    }
    let parameters = parameters.build().map_err(|error| Failed::for_good(chain(&error)))?;
    Ok(if mail.tls == Tls::Implicit { Protection::Wrapper(parameters) } else { Protection::Required(parameters) })
}

/// Without a version of MIME a strict client shows the encoding; what no person sent is not to be answered by a machine
/// (RFC 3834).
fn letter(mail: &Mail, message: &Message) -> Result<Letter, lettre::error::Error> {
    const SENT_BY: HeaderName = HeaderName::new_from_ascii_str("Auto-Submitted");
    let letter = Letter::builder()
        .from(mail.from.clone())
        .subject(&message.subject)
        .message_id(Some(format!("<{}@{}>", Uuid::now_v7(), mail.from.email.domain())))
        .header(MIME_VERSION_1_0)
        .header(ContentType::TEXT_PLAIN)
        .raw_header(HeaderValue::new(SENT_BY, "auto-generated".to_owned()));
    mail.to.iter().fold(letter, |letter, to| letter.to(to.clone())).body(message.text.clone())
}
