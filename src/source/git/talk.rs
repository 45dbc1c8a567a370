//! The conversation with libgit2: its callbacks, and what its errors mean.

use std::{cell::RefCell, time::Instant};

use git2::{
    AutotagOption, CertificateCheckStatus, Cred, CredentialType, Direction, Error, ErrorClass, ErrorCode, FetchOptions,
    FetchPrune, Progress, RemoteCallbacks, RemoteRedirect, Repository,
    cert::{Cert, CertHostkey},
};

use super::{
    error::{GitError, Reason},
    hostkey,
    relay::MAX_FETCH,
    secret::Login,
    spec::{Scheme, Spec},
};

/// Most objects that one fetch may bring.
const MAX_OBJECTS: usize = 2_000_000;

/// What of the remote is brought.
pub(super) enum Followed {
    /// One reference of theirs, under a name of ours.
    One(String, String),
    /// All branches and tags.
    All,
}

/// One conversation.
pub(super) struct Talk<'a> {
    spec: &'a Spec,
    login: &'a Login,
    deadline: Instant,
    /// What a callback of ours found wrong.
    failure: RefCell<Option<GitError>>,
    /// Whether the key was shown already; a second time it would be refused again.
    asked: RefCell<bool>,
}

impl<'a> Talk<'a> {
    pub(super) fn new(spec: &'a Spec, login: &'a Login, deadline: Instant) -> Self {
        Self { spec, login, deadline, failure: RefCell::new(None), asked: RefCell::new(false) }
    }

    /// What one of our own checks found wrong.
    pub(super) fn failure(&self) -> Option<GitError> {
        self.failure.borrow().clone()
    }

    /// Connects, looks whether the reference is there, and fetches it.
    pub(super) fn fetch(
        &self,
        repository: &Repository,
        url: &str,
        followed: &Followed,
        depth: i32,
    ) -> Result<(), GitError> {
        let explain = |error: Error| self.explain(&error);
        let mut remote = repository.remote_anonymous(url).map_err(explain)?;
        let mut connection = remote.connect_auth(Direction::Fetch, Some(self.callbacks()), None).map_err(explain)?;
        let names: Vec<String> =
            connection.list().map_err(explain)?.iter().map(|head| head.name().to_owned()).collect();
        if !names.iter().any(|name| name.starts_with("refs/")) {
            let message = format!("the repository {} is empty", self.spec.url);
            return Err(GitError::new(Reason::Empty, message, "push a first commit, or correct the address"));
        }
        let refspecs = match followed {
            Followed::One(theirs, _) if !names.contains(theirs) => return Err(absent(self.spec)),
            Followed::One(theirs, ours) => vec![format!("+{theirs}:{ours}")],
            Followed::All => {
                ["heads", "tags"].map(|kind| format!("+refs/{kind}/*:refs/patronus/all/{kind}/*")).to_vec()
            }
        };
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks())
            .prune(FetchPrune::Off)
            .update_fetchhead(false)
            .download_tags(AutotagOption::None)
            .follow_redirects(RemoteRedirect::None)
            .depth(depth);
        connection.remote().fetch(&refspecs, Some(&mut options), None).map_err(explain)
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks
            .credentials(|_, _, allowed| self.credentials(allowed))
            .certificate_check(|cert, _| self.certificate(cert))
            .transfer_progress(|progress| self.progress(&progress))
            .sideband_progress(|_| Instant::now() < self.deadline);
        callbacks
    }

    fn fail(&self, error: GitError) -> Error {
        let shown = Error::from_str(&error.message);
        self.failure.borrow_mut().get_or_insert(error);
        shown
    }

    /// The private key for ssh. For https the relay logs in.
    fn credentials(&self, allowed: CredentialType) -> Result<Cred, Error> {
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(&self.login.user);
        }
        let host = &self.spec.url.host;
        let denied =
            |message: String, remedy: &str| Err(self.fail(GitError::new(Reason::Authentication, message, remedy)));
        if self.asked.replace(true) {
            let message = format!("{host} does not accept the key of the user `{}`", self.login.user);
            return denied(message, "add its public half to the repository as a deploy key: ssh-keygen -y -f FILE");
        }
        match &self.login.secret {
            Some(key) if allowed.contains(CredentialType::SSH_KEY) => {
                let cred = Cred::ssh_key_from_memory(&self.login.user, None, key, None);
                cred.map_err(|error| {
                    let message = format!("the private key cannot be used: {}", error.message());
                    let remedy = "make one without a passphrase: ssh-keygen -t ed25519 -N '' -f FILE";
                    self.fail(GitError::new(Reason::Settings, message, remedy))
                })
            }
            _ => denied(format!("{host} takes no key for login"), "the server must allow public keys"),
        }
    }

    /// The host's key. For https the relay has checked the certificate.
    fn certificate(&self, cert: &Cert<'_>) -> Result<CertificateCheckStatus, Error> {
        if self.spec.url.scheme != Scheme::Ssh {
            return Ok(CertificateCheckStatus::CertificatePassthrough);
        }
        let shown = cert.as_hostkey().and_then(CertHostkey::hostkey);
        self.host_key(shown).map_err(|error| self.fail(error))?;
        Ok(CertificateCheckStatus::CertificateOk)
    }

    fn host_key(&self, shown: Option<&[u8]>) -> Result<(), GitError> {
        let url = &self.spec.url;
        let wrong = |message: String, remedy: &str| GitError::new(Reason::HostKey, message, remedy);
        let shown = shown.ok_or_else(|| wrong(format!("{} shows no key", url.host), "ask its operator"))?;
        let file = self.spec.known_hosts.as_ref();
        let file = file.ok_or_else(|| wrong(format!("{} is not known", url.host), "give the source `knownHosts`"))?;
        let text = std::fs::read_to_string(file).map_err(|error| {
            let message = format!("the host keys {} cannot be read: {error}", file.display());
            GitError::new(Reason::Settings, message, "`knownHosts` names a file as ssh-keyscan(1) prints it")
        })?;
        hostkey::check(&file.display().to_string(), &text, &url.host, url.port, shown)
    }

    /// Whether the transfer may go on.
    fn progress(&self, progress: &Progress<'_>) -> bool {
        let over = |limit: String| {
            let message = format!("{} is over the limit: {limit}", self.spec.url);
            drop(self.fail(GitError::new(Reason::Limit, message, "keep the configuration in a repository of its own")));
            false
        };
        if progress.received_bytes() as u64 > MAX_FETCH {
            return over(format!("at most {} MiB", MAX_FETCH >> 20));
        }
        if progress.total_objects() > MAX_OBJECTS {
            return over(format!("at most {MAX_OBJECTS} objects"));
        }
        if Instant::now() < self.deadline {
            return true;
        }
        let message = format!("{} was not fetched within {} s", self.spec.url, self.spec.timeout.as_secs_f32());
        drop(self.fail(GitError::new(Reason::Timeout, message, "a slow line needs a longer `timeout`")));
        false
    }

    /// What an error of libgit2 means.
    fn explain(&self, error: &Error) -> GitError {
        let url = &self.spec.url;
        let text = error.message();
        let has = |part: &str| text.contains(part);
        let (reason, what, remedy) = match (error.class(), error.code()) {
            _ if has("not appear to be a git repository") || has("not found") || has("No such file") => {
                (Reason::NotFound, "is no repository", "check the address, and that we may read it there")
            }
            _ if has("private key") => {
                let remedy = "make one without a passphrase: ssh-keygen -t ed25519 -N '' -f FILE";
                (Reason::Settings, "needs a private key, and that of `credentials` cannot be used", remedy)
            }
            (_, ErrorCode::Auth) if has("Failed getting response") => {
                (Reason::Disconnected, "ended the connection too early", "it is tried again")
            }
            (_, ErrorCode::Auth) => (Reason::Authentication, "does not let us in", "check `credentials`"),
            (_, code) if code == ErrorCode::Owner || has("not owned by current user") => {
                let remedy = "it must belong to the user of the daemon: chown -R";
                (Reason::Forbidden, "belongs to another user of this machine", remedy)
            }
            (ErrorClass::Os | ErrorClass::Filesystem, _) => {
                (Reason::Storage, "cannot be stored", "the state directory must be writable and have space: df -h")
            }
            (_, ErrorCode::Eof) if url.scheme == Scheme::Https => {
                (Reason::Corrupt, "sends a damaged answer that ends too early", "it is tried again")
            }
            (ErrorClass::Ssh | ErrorClass::Net, ErrorCode::Eof) => {
                (Reason::Disconnected, "ended the connection too early", "it is tried again")
            }
            (ErrorClass::Ssh, _) => (Reason::Disconnected, "broke off", "it is tried again"),
            (ErrorClass::Repository, _) if url.scheme == Scheme::File => {
                (Reason::NotFound, "is no repository", "check the address")
            }
            _ => {
                let remedy = "it is tried again; `git fsck` there shows whether it is damaged";
                (Reason::Corrupt, "sends something that is no Git or is damaged", remedy)
            }
        };
        GitError::new(reason, format!("{url} {what}: {text}"), remedy)
    }
}

/// What is followed is not there.
pub(super) fn absent(spec: &Spec) -> GitError {
    let message = format!("{} has no {}", spec.url, spec.reference);
    GitError::new(Reason::NoSuchReference, message, format!("see what it has: git ls-remote {}", spec.url))
}
