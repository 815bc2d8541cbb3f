// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a misspelt word was perhaps meant to be.

/// Number of letters that have to be added, left out, exchanged or swapped with their neighbour to get from one word to
/// the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    // The distances of what came before each letter, for this letter of `from` and the two before it.
    let mut earlier: Vec<usize> = Vec::new();
    let mut before: Vec<usize> = (0..=to.len()).collect();
    for (row, a) in from.iter().enumerate() {
        let mut here = vec![row + 1];
        for (column, b) in to.iter().enumerate() {
            let at =
                |list: &[usize], index: usize| list.get(index).copied().unwrap_or(usize::MAX - 1);
            let exchanged = at(&before, column) + usize::from(a != b);
            let mut least = exchanged
                .min(at(&before, column + 1) + 1)
                .min(at(&here, column) + 1);
            let previous = |list: &[char], index: usize| list.get(index.checked_sub(1)?).copied();
            if previous(&from, row) == Some(*b) && previous(&to, column) == Some(*a) {
                least = least.min(at(&earlier, column - 1) + 1);
            }
            here.push(least);
        }
        earlier = std::mem::replace(&mut before, here);
    }
    before.last().copied().unwrap_or(0)
}

/// The known word that is nearly this one, if there is one.
pub(super) fn nearest(
    word: &str,
    known: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    // A guess takes time in proportion to the word.
    let word = Some(word).filter(|word| word.len() <= 16)?;
    let near = known.map(|known| (distance(word, known), known));
    let (distance, known) = near.min()?;
    (distance <= known.len() / 3).then_some(known)
}
