//! Pictures of what was measured, for `target/bench/`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;

use super::beats::Beat;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 48.0;

/// Writes a picture, and says where.
pub fn write(name: &str, picture: &str) -> Result<()> {
    let folder = PathBuf::from(std::env::var_os("MYCELIUM_BENCH_OUT").unwrap_or_else(|| "target/bench".into()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    std::fs::write(&path, picture)?;
    eprintln!("  drawn: {}", path.display());
    Ok(())
}

/// A picture that is being drawn; x and y are in the units of the measurement.
struct Canvas {
    svg: String,
    left: f64,
    right: f64,
    top: f64,
}

impl Canvas {
    fn new(title: &str, (left, right): (f64, f64), top: f64) -> Self {
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>"##
        );
        let _ = write!(svg, r#"<text x="{MARGIN}" y="20" font-size="14">{title}</text>"#);
        Self { svg, left, right, top }
    }

    fn x(&self, value: f64) -> f64 {
        MARGIN + (value - self.left) / (self.right - self.left) * (WIDTH - 2.0 * MARGIN)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - MARGIN - value / self.top * (HEIGHT - 2.0 * MARGIN)
    }

    /// Lines across, with what they stand for.
    fn rows(&mut self, unit: &str) {
        let step = step(self.top);
        for n in 0..=(self.top / step) as u32 {
            let (value, y) = (f64::from(n) * step, self.y(f64::from(n) * step));
            let _ = write!(
                self.svg,
                r##"<path d="M{MARGIN} {y:.1}H{}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{value} {unit}</text>"##,
                WIDTH - MARGIN,
                MARGIN - 4.0,
                y + 4.0
            );
        }
    }

    /// Marks below.
    fn columns(&mut self, unit: &str) {
        let step = step(self.right - self.left);
        let mut value = (self.left / step).ceil() * step;
        while value <= self.right {
            let (x, y) = (self.x(value), HEIGHT - MARGIN + 16.0);
            let _ = write!(self.svg, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{value:.0} {unit}</text>"#);
            value += step;
        }
    }

    fn bar(&mut self, x: f64, width: f64, height: f64, colour: &str) {
        let (left, top) = (self.x(x), self.y(height));
        let (width, height) = ((self.x(x + width) - left).max(0.5), self.y(0.0) - top);
        let _ = write!(
            self.svg,
            r#"<rect x="{left:.1}" y="{top:.2}" width="{width:.2}" height="{height:.2}" fill="{colour}"/>"#
        );
    }

    /// An upright line with a word beside it.
    fn mark(&mut self, at: f64, row: usize, text: &str) {
        let (x, y) = (self.x(at), MARGIN + 14.0 * row as f64);
        let _ = write!(
            self.svg,
            r##"<path d="M{x:.1} {y:.1}V{}" stroke="#e15759"/><text x="{:.1}" y="{y:.1}">{text}</text>"##,
            HEIGHT - MARGIN,
            x + 4.0
        );
    }

    fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// A round number that divides a length into five parts or so.
fn step(length: f64) -> f64 {
    let power = 10_f64.powf((length / 5.0).max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| length / step <= 6.0).unwrap_or(power * 10.0)
}

/// Each pause as a bar, in order.
pub fn pauses(pauses_ms: &[f64], title: &str) -> String {
    let highest = pauses_ms.iter().copied().fold(1.0, f64::max);
    let mut canvas = Canvas::new(title, (0.0, pauses_ms.len() as f64), highest * 1.05);
    canvas.rows("ms");
    for (number, pause) in pauses_ms.iter().enumerate() {
        canvas.bar(number as f64, 0.8, *pause, if *pause > 10.0 { "#e15759" } else { "#4e79a7" });
    }
    canvas.columns("");
    canvas.finish()
}

/// A failover or a migration: what the client heard, and what happened when. Times in seconds since 1970.
pub fn timeline(beats: &[Beat], cut: f64, events: &[(f64, String)], title: &str) -> String {
    let last = beats.last().map_or(cut + 1.0, |beat| beat.at);
    let from = beats.first().map_or(cut - 0.2, |beat| beat.at);
    let ms = |at: f64| (at - cut) * 1e3;
    let mut canvas = Canvas::new(title, (ms(from), ms(last)), 1.0);
    // A packet is a hairline: where they stand close, the guest speaks.
    beats.iter().for_each(|beat| canvas.bar(ms(beat.at), 0.0, 0.35, "#59a14f"));
    for (row, (at, text)) in events.iter().enumerate() {
        canvas.mark(ms(*at), row + 1, &format!("{:.0} ms: {text}", ms(*at)));
    }
    canvas.columns("ms");
    canvas.finish()
}
