//! Pod network, services and DNS: pure compile(desired) -> rules, then apply
