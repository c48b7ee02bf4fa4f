//! A bar per layer; nothing where standard error is no terminal.

use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mycelium_image::Progress;
use mycelium_image::pull::ProgressFn;

const HERE: &str = "{prefix} {msg}";
const DOWNLOAD: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}";

/// Receives a pull's progress and draws it.
pub(super) fn bars() -> ProgressFn {
    let all = MultiProgress::new();
    let bars: Mutex<Vec<ProgressBar>> = Mutex::default();
    Arc::new(move |event| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Progress::Resolved { layers } => {
                for (digest, bytes, here) in layers {
                    let bar = all.add(ProgressBar::new(bytes)).with_prefix(digest.hex()[..12].to_owned());
                    bar.set_style(style(if here { HERE } else { DOWNLOAD }));
                    if here {
                        bar.finish_with_message("already here");
                    }
                    bars.push(bar);
                }
            }
            Progress::Downloaded { layer, bytes } => bars[layer].set_position(bytes),
            Progress::Unpacking { layer } => bars[layer].set_message("unpacking"),
            Progress::Ready { layer } => bars[layer].finish_with_message("done"),
        }
    })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
