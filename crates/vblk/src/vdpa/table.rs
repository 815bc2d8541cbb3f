// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables for people.

/// Columns as wide as their widest cell, two spaces between. Empty cells are shown as `-`, control
/// characters, which a name may have, escaped.
pub fn render<const N: usize>(
    header: [&str; N],
    rows: impl Iterator<Item = [Option<String>; N]>,
) -> String {
    let mut lines = vec![header.map(str::to_owned)];
    lines.extend(rows.map(|row| row.map(cell)));
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (width, cell) in widths.iter().zip(line) {
            row += &format!("{cell:width$}  ");
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

fn cell(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let control = c.is_control();
            let escaped = control.then(|| c.escape_default());
            escaped.into_iter().flatten().chain((!control).then_some(c))
        })
        .collect()
}
