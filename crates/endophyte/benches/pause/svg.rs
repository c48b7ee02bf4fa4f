//! A picture of pauses: one bar per epoch, coloured by what the time went into.

use std::fmt::Write as _;

use mycelium_endophyte::machine::PauseTiming;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 48.0;

/// The parts of a pause from the bottom up: name, colour.
const PARTS: [(&str, &str); 6] = [
    ("stop", "#4e79a7"),
    ("at_stop", "#bab0ac"),
    ("scan and copy", "#59a14f"),
    ("rest of save", "#f28e2b"),
    ("second look", "#76b7b2"),
    ("cont", "#e15759"),
];

/// The picture.
pub fn pauses(timings: &[PauseTiming]) -> String {
    let highest = timings.iter().map(|t| t.total.as_secs_f64() * 1e3).fold(1.0, f64::max).ceil();
    let scale = (HEIGHT - 2.0 * MARGIN) / highest;
    let step = (WIDTH - 2.0 * MARGIN) / timings.len().max(1) as f64;
    let mut svg = String::new();
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>"##
    );
    grid(&mut svg, highest, scale);
    for (number, timing) in timings.iter().enumerate() {
        let parts = [timing.stop, timing.seal, timing.copy, timing.save, timing.rescan, timing.cont];
        let mut top = HEIGHT - MARGIN;
        for (part, (_, colour)) in parts.iter().zip(PARTS) {
            let height = part.as_secs_f64() * 1e3 * scale;
            top -= height;
            let x = MARGIN + number as f64 * step;
            let width = (step * 0.9).max(0.5);
            let _ = write!(
                svg,
                r#"<rect x="{x:.1}" y="{top:.2}" width="{width:.2}" height="{height:.2}" fill="{colour}"/>"#
            );
        }
    }
    legend(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

fn grid(svg: &mut String, highest: f64, scale: f64) {
    let step = (highest / 5.0).ceil().max(1.0);
    let mut value = 0.0;
    while value <= highest {
        let y = HEIGHT - MARGIN - value * scale;
        let _ = write!(
            svg,
            r##"<path d="M{MARGIN} {y:.1}H{}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{value} ms</text>"##,
            WIDTH - MARGIN,
            MARGIN - 4.0,
            y + 4.0
        );
        value += step;
    }
}

fn legend(svg: &mut String) {
    let mut x = MARGIN;
    let _ = write!(svg, r#"<text x="{x}" y="18">the guest's pause at each checkpoint</text>"#);
    for (name, colour) in PARTS {
        let (square, text) = (HEIGHT - 26.0, HEIGHT - 15.0);
        let _ = write!(
            svg,
            r#"<rect x="{x}" y="{square}" width="12" height="12" fill="{colour}"/><text x="{}" y="{text}">{name}</text>"#,
            x + 16.0
        );
        x += 120.0;
    }
}
