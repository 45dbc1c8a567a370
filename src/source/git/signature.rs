//! What the signature of a commit is worth: SSH signatures against the router's own file of allowed signers.
//!
//! As `git verify-commit` does, the validity of a key is judged at the time that the commit gives itself. Who wants
//! a key out takes it out of the file.

use std::path::Path;

use git2::{Oid, Repository};
use jiff::Timestamp;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents};
use ssh_key::{Algorithm, HashAlg, PublicKey, SshSig, public::KeyData};

use super::{hostkey::fingerprint, signers::Signers, spec::Verify};
use crate::config::commit::Signature;

/// What a signature is made for: `ssh-keygen -Y sign -n NAMESPACE`. One made for something else counts for nothing.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    /// The namespace in the signature.
    pub namespace: &'static str,
    /// What is signed, for a person.
    pub what: &'static str,
}

/// Commits.
const COMMIT: Purpose = Purpose { namespace: "git", what: "commit" };

/// Judges the signature of a commit.
pub(super) fn judge(repository: &Repository, id: Oid, at: Timestamp, verify: &Verify) -> Signature {
    let Verify::Head(file) = verify else { return Signature::Off };
    let Ok((signature, content)) = repository.extract_signature(&id, None) else { return Signature::Missing };
    match check(COMMIT, file, &signature, &content, at) {
        Ok((signer, key)) => Signature::Good { signer, key },
        Err(reason) => Signature::Bad { reason },
    }
}

/// Principal and fingerprint of who signed; an error says why that counts for nothing.
pub fn check(
    purpose: Purpose,
    file: &Path,
    signature: &[u8],
    content: &[u8],
    at: Timestamp,
) -> Result<(String, String), String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("the allowed signers {} cannot be read: {error}", file.display()))?;
    if signature.starts_with(b"-----BEGIN PGP") {
        return Err("it is an OpenPGP signature; only SSH signatures are checked (git config gpg.format ssh)".into());
    }
    let signature = SshSig::from_pem(signature).map_err(|error| format!("it is no SSH signature: {error}"))?;
    if signature.namespace() != purpose.namespace {
        return Err(format!("it was made for `{}`, not for `{}`", signature.namespace(), purpose.namespace));
    }
    let key = signature.public_key();
    let encoded = PublicKey::from(key.clone()).to_bytes().map_err(|error| format!("its key: {error}"))?;
    let print = fingerprint(&encoded);
    let whose = |why: String| format!("{why}; the key is {print}");
    fits(purpose, &signature, content).map_err(whose)?;
    let principal = Signers::parse(&text).find(key, at, purpose).map_err(whose)?.to_owned();
    Ok((principal, print))
}

/// Whether the signature belongs to what was signed.
fn fits(purpose: Purpose, signature: &SshSig, content: &[u8]) -> Result<(), String> {
    let Purpose { namespace, what } = purpose;
    let wrong = || format!("it does not fit the {what}: the {what} was changed after it was signed");
    if let KeyData::Rsa(key) = signature.public_key() {
        let signed = SshSig::signed_data(namespace, signature.hash_alg(), content)
            .map_err(|error| format!("it is damaged: {error}"))?;
        let algorithm = match signature.algorithm() {
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => &RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) } => &RSA_PKCS1_2048_8192_SHA512,
            other => return Err(format!("signatures of type {other} are not accepted")),
        };
        let (Some(n), Some(e)) = (key.n.as_positive_bytes(), key.e.as_positive_bytes()) else { return Err(wrong()) };
        let key = RsaPublicKeyComponents { n, e };
        return key.verify(algorithm, &signed, signature.signature_bytes()).map_err(|_| wrong());
    }
    PublicKey::from(signature.public_key().clone()).verify(namespace, content, signature).map_err(|error| match error {
        ssh_key::Error::AlgorithmUnsupported { algorithm } => {
            format!("signatures of type {algorithm} are not supported")
        }
        _ => wrong(),
    })
}
