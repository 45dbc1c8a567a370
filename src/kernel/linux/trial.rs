//! Experiments in an empty network namespace, which goes with the thread that made it.

use super::Linux;
use crate::{
    kernel::{Kernel as _, KernelError},
    plan::Step,
    state::{Ranges, Stamp},
};

/// Carries out steps where nothing else is; nothing if there may be no such namespace.
pub async fn in_empty_namespace(steps: Vec<Step>, ranges: Ranges) -> Option<Result<(), KernelError>> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(here(&steps, &ranges)));
    result.await.ok().flatten()
}

fn here(steps: &[Step], ranges: &Ranges) -> Option<Result<(), KernelError>> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let stamp = Stamp { generation: 0, plan: uuid::Uuid::nil() };
    Some(runtime.block_on(async {
        let linux = Linux::connect()?;
        for step in steps {
            linux.execute(step, ranges, &stamp).await?;
        }
        Ok(())
    }))
}
