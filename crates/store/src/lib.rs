//! Revisioned key-value store: transactions, range reads, watch, compaction, one file
