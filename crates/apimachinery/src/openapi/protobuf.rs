//! As much of protobuf's wire format as a document needs: strings, booleans and messages.

/// A message under construction.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Appends a text field; nothing if it is empty.
    pub fn text(mut self, field: u32, text: &str) -> Self {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
        self
    }

    /// Appends a true flag.
    pub fn flag(mut self, field: u32, flag: bool) -> Self {
        if flag {
            self.varint(u64::from(field) << 3);
            self.0.push(1);
        }
        self
    }

    /// Appends a message.
    pub fn message(mut self, field: u32, message: Message) -> Self {
        self.bytes(field, &message.0);
        self
    }

    /// Appends messages.
    pub fn messages(self, field: u32, messages: impl IntoIterator<Item = Message>) -> Self {
        messages.into_iter().fold(self, |all, message| all.message(field, message))
    }

    /// The encoded form.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint((u64::from(field) << 3) | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
