//! Scheduler and built-in controllers: pure plans and the thin shells that carry them out
