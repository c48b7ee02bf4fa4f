//! Hooks after a container's start and before its stop.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

use super::probe::Target;
use super::{exec, http};

/// Runs a hook; an error is the text for the event.
pub async fn run(handler: &LifecycleHandler, target: &Target, timeout: Duration) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        return match exec::run(&target.shim, &target.id, &command, timeout).await {
            Ok(outcome) if outcome.code == 0 => Ok(()),
            Ok(outcome) => {
                let words = command.join(" ");
                Err(format!("command '{words}' exited with {}: {}", outcome.code, outcome.output))
            }
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &handler.http_get {
        let port = http::port(&target.container, &action.port)?;
        return http::get(action, &target.host, port, timeout, target.from()).await;
    }
    if let Some(action) = &handler.sleep {
        let wanted = Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(timeout)).await;
    }
    Ok(())
}
