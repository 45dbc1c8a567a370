//! Who is at the other end of the control socket.
//!
//! The socket's mode (0660) already keeps others out at connect(2). This is the second lock, for a mode that
//! someone widened, and it gives the log a name.

use std::ffi::CString;

use axum::{
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
    serve::IncomingStream,
};
use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::net::{UnixListener, unix::UCred};

use super::Failed;
use crate::guard::Who;

/// The process that connected (`SO_PEERCRED`, unix(7)); absent if the kernel did not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(Option<UCred>);

impl Peer {
    /// The user behind it, for the audit.
    pub(super) fn who(self) -> Who {
        let uid = self.0.map_or(u32::MAX, |peer| peer.uid());
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        Who::Person { uid, user, sudo_user: None }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

/// Answers 403 to whoever may not use the socket, and logs who asks for a change.
pub(super) async fn admit(
    State(group): State<Gid>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(peer) = peer.filter(|peer| may_use(Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()), group)) else {
        let uid = peer.map(|p| p.uid());
        tracing::warn!(?uid, path = request.uri().path(), "refused on the control socket");
        return Failed(StatusCode::FORBIDDEN, "only root and members of the socket's group may ask".into())
            .into_response();
    };
    if request.method() == axum::http::Method::GET {
        tracing::debug!(uid = peer.uid(), pid = peer.pid(), path = request.uri().path(), "asked on the control socket");
    } else {
        tracing::info!(uid = peer.uid(), pid = peer.pid(), path = request.uri().path(), "asked on the control socket");
    }
    next.run(request).await
}

fn may_use(uid: Uid, gid: Gid, group: Gid) -> bool {
    uid.is_root() || uid == Uid::effective() || gid == group || groups(uid, gid).contains(&group)
}

fn groups(uid: Uid, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(uid).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_refused_and_members_are_not() {
        let (stranger, group) = (Uid::from_raw(61_234), Gid::from_raw(61_000));
        assert!(!may_use(stranger, Gid::from_raw(61_234), group));
        assert!(may_use(stranger, group, group));
        assert!(may_use(Uid::from_raw(0), Gid::from_raw(0), group));
        assert!(may_use(Uid::effective(), Gid::from_raw(1), group));
    }
}
