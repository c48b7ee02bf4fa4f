//! What members say to each other, and its encoding: a version byte, then postcard.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::types::{Position, Proposal, Version};

/// The version of the encoding; a member refuses others.
pub const ENCODING: u8 = 2;

/// A message longer than this is refused unread.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// One message between two members of one group. The transport says who sent it, and keeps groups apart.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Message {
    /// The primary lives. Answered by a [`Message::Report`] with the same stamp.
    Heartbeat {
        /// The primary's term.
        term: u64,
        /// Opaque to the receiver.
        stamp: u64,
    },
    /// A configuration to accept, or the news that it is settled.
    Propose {
        /// The primary's term.
        term: u64,
        /// The configuration.
        proposal: Arc<Proposal>,
    },
    /// What a member has.
    Report {
        /// The member's term.
        term: u64,
        /// The newest configuration it accepted.
        accepted: Version,
        /// It knows that this configuration is settled.
        settled: bool,
        /// Its last whole epoch.
        held: Option<Position>,
        /// It missed an epoch and must be synced.
        gap: bool,
        /// The stamp of the heartbeat that this answers.
        echo: Option<u64>,
        /// Its place among the member's reports.
        order: ReportOrder,
    },
    /// The sender's term is later than the receiver's.
    Stale {
        /// The sender's term.
        term: u64,
    },
    /// Would you vote for me? Changes nothing.
    PreVote {
        /// Tells rounds apart.
        round: u64,
        /// Asked for by an operator, who needs only the promise to have ended.
        by_hand: bool,
        /// What the asking member holds.
        held: Option<Position>,
    },
    /// The answer to [`Message::PreVote`].
    PreVoteReply {
        /// The round asked.
        round: u64,
        /// It would.
        granted: bool,
        /// The term of the answering member.
        term: u64,
        /// What it knows.
        ballot: Ballot,
    },
    /// Vote for me.
    VoteRequest {
        /// The term to vote in.
        term: u64,
        /// The primary itself asked for this election: its lease is over.
        handed_over: bool,
    },
    /// A vote, on disk.
    Vote {
        /// The term voted in.
        term: u64,
        /// What the voter knows.
        ballot: Ballot,
    },
    /// The primary votes for the receiver and will release nothing more.
    HandOver {
        /// The term of the vote.
        term: u64,
        /// What the primary knows.
        ballot: Ballot,
        /// Everything it released is at or before this.
        certified: Position,
    },
}

/// Which of two reports of a member to the primary of one term is the later one: messages overtake each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ReportOrder {
    /// The latest stamp of the primary that the member heard: a restarted member comes after what it was before.
    pub heard: u64,
    /// How often what it tells changed since it entered the term.
    pub change: u64,
}

/// What a voter tells with its vote.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// The last whole epoch it holds as a backup.
    pub held: Option<Position>,
    /// The newest configuration it accepted.
    pub proposal: Option<Arc<Proposal>>,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    #[error("message of {0} bytes is longer than {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// Another version of the encoding, or nothing at all.
    #[error("message of encoding {0:?}, expected {ENCODING}: run the same version of mycelium on all hosts")]
    Version(Option<u8>),
    /// Not a message.
    #[error("malformed message")]
    Malformed,
}

impl Message {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising plain data into a growing vector has no way to fail.
        postcard::to_extend(self, vec![ENCODING]).unwrap_or_default()
    }

    /// The message of which these are the bytes, all of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        match bytes.split_first() {
            Some((&ENCODING, rest)) => match postcard::take_from_bytes(rest) {
                Ok((message, [])) => Ok(message),
                _ => Err(DecodeError::Malformed),
            },
            other => Err(DecodeError::Version(other.map(|(version, _)| *version))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::group::types::{Alone, Config, Name, OutputMode, Policy, Rules};

    fn name() -> impl Strategy<Value = Name> {
        prop::collection::vec(prop::char::range('a', 'z'), 1..8)
            .prop_map(|text| text.into_iter().collect::<String>().into())
    }

    fn names() -> impl Strategy<Value = BTreeSet<Name>> {
        prop::collection::btree_set(name(), 0..4)
    }

    fn position() -> impl Strategy<Value = Position> {
        (any::<u64>(), any::<u64>()).prop_map(|(term, epoch)| Position { term, epoch })
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let policy = prop_oneof![Just(Policy::Any), Just(Policy::Majority), Just(Policy::All)];
        (policy, any::<bool>(), any::<bool>()).prop_map(|(policy, hold, best)| Rules {
            policy,
            alone: if hold { Alone::Hold } else { Alone::GoOn },
            output: if best { OutputMode::BestEffort } else { OutputMode::Commit },
        })
    }

    fn proposal() -> impl Strategy<Value = Arc<Proposal>> {
        let version = (any::<u64>(), any::<u64>()).prop_map(|(term, number)| Version { term, number });
        (version, name(), (names(), names(), names(), names()), rules(), position(), any::<bool>()).prop_map(
            |(version, primary, (data, witnesses, voters, holders), rules, base, settled)| {
                let config = Config { version, primary, data, witnesses, voters, holders, rules, base };
                Arc::new(Proposal { under: vec![config.quorum()], config, settled })
            },
        )
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        (prop::option::of(position()), prop::option::of(proposal()))
            .prop_map(|(held, proposal)| Ballot { held, proposal })
    }

    fn message() -> impl Strategy<Value = Message> {
        let n = any::<u64>;
        let b = any::<bool>;
        prop_oneof![
            (n(), n()).prop_map(|(term, stamp)| Message::Heartbeat { term, stamp }),
            (n(), proposal()).prop_map(|(term, proposal)| Message::Propose { term, proposal }),
            (n(), n(), b(), prop::option::of(position()), b(), prop::option::of(n()), (n(), n())).prop_map(
                |(term, number, settled, held, gap, echo, (heard, change))| {
                    let (accepted, order) = (Version { term, number }, ReportOrder { heard, change });
                    Message::Report { term, accepted, settled, held, gap, echo, order }
                }
            ),
            n().prop_map(|term| Message::Stale { term }),
            (n(), b(), prop::option::of(position())).prop_map(|(round, by_hand, held)| Message::PreVote {
                round,
                by_hand,
                held
            }),
            (n(), b(), n(), ballot()).prop_map(|(round, granted, term, ballot)| Message::PreVoteReply {
                round,
                granted,
                term,
                ballot
            }),
            (n(), b()).prop_map(|(term, handed_over)| Message::VoteRequest { term, handed_over }),
            (n(), ballot()).prop_map(|(term, ballot)| Message::Vote { term, ballot }),
            (n(), ballot(), position()).prop_map(|(term, ballot, certified)| Message::HandOver {
                term,
                ballot,
                certified
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_nothing_shorter_or_longer_does(message in message(), cut in any::<prop::sample::Index>()) {
            let mut bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
            prop_assert!(Message::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert_eq!(Message::decode(&bytes), Err(DecodeError::Malformed));
            bytes[0] = ENCODING + 1;
            prop_assert_eq!(Message::decode(&bytes), Err(DecodeError::Version(Some(ENCODING + 1))));
        }

        #[test]
        fn any_bytes_are_refused_or_decode_to_what_encodes_again(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = ENCODING;
            }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
            }
        }
    }
}
