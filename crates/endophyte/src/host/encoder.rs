//! From checkpoints to frames: pages to bytes, one frame for all who follow, parts of copies for those who do not yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use bytes::Bytes;
use mycelium_api::endophyte::Compression as Wanted;
use tokio::sync::mpsc;

use super::agent::Event;
use super::primary::{Captured, Job, Sent, Settings, Work};
use super::replica::Kept;
use super::stream::{Outbox, StreamMessage, frame_message};
use crate::codec::{
    Compression, DeviceEncoder, EncoderConfig, EpochId, FrameKind, PAGE, Packer, PageEncoder, Parts as FrameParts, seal,
};
use crate::group::Position;

/// The thread that makes frames of checkpoints.
pub(super) struct Encoder {
    settings: Settings,
    pages: u64,
    encoder: PageEncoder,
    /// What encodes parts of copies, while there are any.
    base: Option<PageEncoder>,
    compression: Compression,
    devices: DeviceEncoder,
    disk: Packer,
    /// Epochs that not every backup in sync has: a host that is elected, or elected again, sends them again.
    kept: Kept,
    settled: Arc<AtomicU64>,
    events: mpsc::UnboundedSender<Event>,
}

impl Encoder {
    /// `settled` is the last epoch that need not be kept.
    pub fn new(
        settings: Settings,
        pages: u64,
        kept: Kept,
        settled: Arc<AtomicU64>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let seed = settings.seed;
        let cache_bytes = usize::try_from(settings.shares.page_copies).unwrap_or(usize::MAX);
        let compression = packing(settings.ram.compression);
        let encoder = page_encoder(pages, cache_bytes, seed, compression);
        let (devices, disk) = (DeviceEncoder::new(seed, compression), Packer::new(compression));
        Self { settings, pages, encoder, base: None, compression, devices, disk, kept, settled, events }
    }

    pub fn run(&mut self, work: &Receiver<Work>) {
        while let Ok(work) = work.recv() {
            match work {
                Work::Checkpoint(job) => {
                    let sent = self.send(job);
                    if self.events.send(Event::Sent(sent)).is_err() {
                        return;
                    }
                }
                Work::Resend { after, term, to } => self.resend(after, term, &to),
            }
        }
    }

    fn resend(&self, after: u64, term: u64, to: &[Outbox]) {
        for (epoch, parts) in self.kept.iter().filter(|(epoch, _)| *epoch > after) {
            let frame = frame_message(seal(&self.id(term, *epoch, FrameKind::Epoch, 0), parts.clone()));
            to.iter().for_each(|outbox| outbox.send(frame.clone()));
        }
    }

    fn keep(&mut self, epoch: u64, parts: FrameParts) {
        let settled = self.settled.load(Ordering::Relaxed);
        self.kept.retain(|(kept, _)| *kept > settled);
        self.kept.push_back((epoch, parts));
    }

    fn id(&self, term: u64, epoch: u64, kind: FrameKind, part: u64) -> EpochId {
        EpochId { vm: self.settings.vm.clone(), term, epoch, kind, part, guest_pages: self.pages }
    }

    fn send(&mut self, job: Job) -> Sent {
        let Job { captured, term, followers, syncing } = job;
        let Captured { capture, disk, network, syncs, slot, mut room, weight: raw, .. } = *captured;
        let epoch = capture.epoch;
        if syncs.iter().any(|step| step.begins) {
            self.encoder.forget();
            self.devices.forget();
        }
        for step in syncs.iter().filter(|step| step.begins) {
            if let Some((_, outbox)) = syncing.iter().find(|(id, _)| *id == step.id) {
                outbox.send(StreamMessage::SyncStart { id: step.id }.encode());
            }
        }
        for step in syncs.iter().filter(|step| !step.indices.is_empty()) {
            let Some((_, outbox)) = syncing.iter().find(|(id, _)| *id == step.id) else { continue };
            let (pages, seed, compression) = (self.pages, self.settings.seed, self.compression);
            let base = self.base.get_or_insert_with(|| page_encoder(pages, 0, seed, compression));
            base.forget();
            let list = step.indices.iter().copied().zip(step.bytes.as_chunks::<PAGE>().0);
            let pages = base.encode(list, slowest([outbox])).chunks;
            let id = self.id(term, epoch, FrameKind::Base, step.part);
            outbox.send(frame_message(seal(&id, FrameParts { pages, ..FrameParts::default() })));
        }
        if syncs.is_empty() {
            self.base = None;
        }
        let dirty_bytes = (capture.pages.len() * PAGE) as u64;
        let link = slowest(followers.iter().chain(syncing.iter().map(|(_, outbox)| outbox)));
        let pages = self.encoder.encode(capture.pages.iter(), link).chunks;
        drop(capture.pages);
        drop(slot);
        // The group's term may go on while the recording's stays.
        let mut disk_pieces = Vec::new();
        if let Some((recorded_since, writes)) = disk {
            disk_pieces.push(Bytes::copy_from_slice(&recorded_since.to_le_bytes()));
            disk_pieces.extend(writes.encode());
            disk_pieces = vec![self.disk.pack(&disk_pieces, link)];
        }
        let length = |pieces: &[Bytes]| pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let disk_bytes = length(&disk_pieces);
        let devices = self.devices.encode(&capture.devices, link);
        let parts = FrameParts { pages, disk: disk_pieces, devices, network };
        self.keep(epoch, parts.clone());
        let frame = frame_message(seal(&self.id(term, epoch, FrameKind::Epoch, 0), parts));
        let weight = self.settings.held.weigh(length(&frame));
        drop(raw);
        for outbox in followers.iter().chain(syncing.iter().map(|(_, outbox)| outbox)) {
            outbox.send_shared(frame.clone(), weight.clone());
        }
        for step in syncs.iter().filter(|step| step.complete) {
            if let Some((_, outbox)) = syncing.iter().find(|(id, _)| *id == step.id) {
                outbox.send(StreamMessage::SyncEnd { id: step.id, at: Position::new(term, epoch) }.encode());
            }
        }
        let frame_bytes = length(&frame);
        if let Some(room) = &mut room {
            // What was copied out of the guest is gone; the frame stays until it is acknowledged.
            room.shrink_to(frame_bytes);
        }
        let copies_bytes = self.encoder.cache_bytes() as u64;
        Sent { epoch, dirty_bytes, frame_bytes, disk_bytes, copies_bytes, room, weight }
    }
}

/// One thread encodes; the other processor is the guest's.
fn page_encoder(pages: u64, cache_bytes: usize, seed: u64, compression: Compression) -> PageEncoder {
    PageEncoder::new(EncoderConfig { threads: 1, compression, ..EncoderConfig::new(pages, cache_bytes, seed) })
}

/// What the slowest of these links carries: every backup must keep up. One of which nothing is known yet is no reason to pack.
fn slowest<'a>(outboxes: impl IntoIterator<Item = &'a Outbox>) -> u64 {
    outboxes.into_iter().filter_map(Outbox::bandwidth).min().unwrap_or(u64::MAX)
}

/// What the document says about packing, in the codec's words.
fn packing(wanted: Wanted) -> Compression {
    match wanted {
        Wanted::Auto => Compression::Auto,
        Wanted::Never => Compression::Never,
        Wanted::Lz4 => Compression::Lz4,
        Wanted::Zstd => Compression::Zstd,
    }
}
