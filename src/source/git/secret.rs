//! Passwords, tokens and private keys: read for each fetch, kept no longer, never printed.

use std::{fmt, path::PathBuf};

use super::{
    error::{GitError, Reason},
    spec::{Secret, Spec},
};

/// A secret is a line or a key, not a file system.
const LARGEST: usize = 64 << 10;

/// Who logs in, with what.
pub(super) struct Login {
    pub(super) user: String,
    pub(super) secret: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Login {
    /// What the settings name, as it is now.
    pub(super) fn of(spec: &Spec) -> Result<Self, GitError> {
        let user = spec.url.user.clone().or_else(|| spec.username.clone()).unwrap_or_else(|| "git".into());
        let secret = spec.secret.as_ref().map(|from| read(from, |name| std::env::var(name).ok())).transpose()?;
        Ok(Self { user, secret })
    }
}

/// Reads a secret that the settings name; the end of its last line does not belong to it.
pub fn read_secret(from: &Secret) -> Result<String, GitError> {
    read(from, |name| std::env::var(name).ok()).map(|text| text.trim_end().to_owned())
}

fn read(from: &Secret, env: impl Fn(&str) -> Option<String>) -> Result<String, GitError> {
    let wrong = |what: String, remedy: &str| Err(GitError::new(Reason::Settings, what, remedy));
    let file = match from {
        Secret::Environment(name) => {
            let hint = "set it where the daemon is started, such as `Environment=` of its unit";
            return env(name).filter(|value| !value.is_empty()).map_or_else(
                || wrong(format!("the environment variable {name} of `credentials` is not set"), hint),
                Ok,
            );
        }
        Secret::File(file) => file.clone(),
        Secret::Systemd(name) => {
            let Some(dir) = env("CREDENTIALS_DIRECTORY") else {
                let what = format!("systemd gives this process no credentials, and `credentials` names `{name}`");
                return wrong(what, "add `LoadCredential=NAME:FILE` to the unit");
            };
            PathBuf::from(dir).join(name)
        }
    };
    match std::fs::read(&file) {
        Ok(bytes) if bytes.len() > LARGEST => {
            wrong(format!("{} is too large for a secret", file.display()), "name the right file in `credentials`")
        }
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) if !text.trim().is_empty() => Ok(text),
            _ => wrong(format!("{} holds no text", file.display()), "name the right file in `credentials`"),
        },
        Err(error) => wrong(
            format!("the credentials {} cannot be read: {error}", file.display()),
            "the file must be readable by the user of the daemon",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_variables_and_systemd() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "s3cret\n").unwrap();
        let env = |name: &str| match name {
            "TOKEN" => Some("fr0m-env".to_owned()),
            "CREDENTIALS_DIRECTORY" => Some(dir.path().display().to_string()),
            _ => None,
        };
        assert_eq!(read(&Secret::File(file), env).as_deref(), Ok("s3cret\n"));
        assert_eq!(read(&Secret::Environment("TOKEN".into()), env).as_deref(), Ok("fr0m-env"));
        assert_eq!(read(&Secret::Systemd("token".into()), env).as_deref(), Ok("s3cret\n"));
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_secret_is_not() {
        let file = |path: &str| Secret::File(path.into());
        for (from, said) in [
            (file("/nonexistent/token"), "/nonexistent/token cannot be read"),
            (file("/dev/null"), "holds no text"),
            (Secret::Environment("NOWHERE".into()), "variable NOWHERE"),
            (Secret::Systemd("token".into()), "systemd gives this process no credentials"),
        ] {
            let error = read(&from, |_| None).unwrap_err();
            assert!(error.message.contains(said), "{error}");
        }
        let login = Login { user: "git".into(), secret: Some("s3cret".into()) };
        assert!(!format!("{login:?}").contains("s3cret"));
    }
}
