//! What keeps replication within its buffer: how full it is, how much slower the guest runs for it, and how long the
//! next epoch lasts. Pure functions and one account; only [`VcpuThrottle`] touches the machine.
//!
//! ```text
//!             fill < threshold     threshold ─► full            full
//!   Pressure: Normal ────────────► Throttled(intensity) ──────► Paused (emergencyPauseEnabled) or Skipping
//!                ▲                        ▲                        │
//!                └────────────────────────┴── fill <= halfway ─────┘
//! ```

mod buffer;
mod curve;
mod epoch;
mod vcpu;

pub use buffer::{Buffer, Level, Reservation, Shares};
pub use curve::{Curve, Governor, Pressure};
pub use epoch::{EpochController, EpochInputs, EpochLimits};
pub use vcpu::VcpuThrottle;
