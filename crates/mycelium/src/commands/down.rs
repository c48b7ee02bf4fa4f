//! `mycelium down`: stop the engine and its pods, and remove what they made on the machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::engine::config::data_dir;
use crate::engine::instance::Instance;

/// How long an engine may take to finish its requests after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Stop the engine and every pod.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium down
  mycelium down --data-dir /srv/b

Objects, images and persistent state stay in the data directory; the next `up` starts the pods again.")]
pub struct Args {
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Stops, then cleans up; succeeds as well when nothing is running.
pub fn run(args: Args) -> Result<ExitCode> {
    let instance = Instance::new(&data_dir(args.data_dir)?);
    let shown = instance.dir().display().to_string();
    if !instance.dir().exists() {
        println!("nothing to stop: there is no engine at {shown}");
        return Ok(ExitCode::SUCCESS);
    }
    stop_engine(&instance)?;
    // Held to the end, so that no engine starts on what is being removed.
    let _lock = instance.lock()?;
    let pods = mycelium_node::pod_folders(instance.dir()).len();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(mycelium_node::teardown(instance.dir(), &instance.id())).context("stopping the pods")?;
    runtime.block_on(mycelium_net::teardown(&instance.id())).context("removing the pod network")?;
    instance.remove_record();
    println!("stopped: {pods} pods, network and cgroups removed; objects and images remain in {shown}");
    Ok(ExitCode::SUCCESS)
}

fn stop_engine(instance: &Instance) -> Result<()> {
    if !instance.is_running()? {
        return Ok(());
    }
    let record = instance.record().with_context(|| {
        format!("an engine holds {} but has not written engine.json yet; try again", instance.dir().display())
    })?;
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw).context("engine.json holds no process id")?;
    match kill_process(pid, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("the engine (pid {}) cannot be stopped", record.pid)),
    }
    if !instance.wait_stopped(STOP_LIMIT)? {
        bail!("the engine (pid {}) did not stop within {} s; look at its log", record.pid, STOP_LIMIT.as_secs());
    }
    Ok(())
}
