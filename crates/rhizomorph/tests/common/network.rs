//! Two machines joined by several wires.
