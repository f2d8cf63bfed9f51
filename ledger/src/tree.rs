//! The accounts' Merkle tree: quaternary, Poseidon, depth 12, leaves filled from the left.
//!
//! Each level is one flat vector of the nodes above used leaves; everything to their right is the root of an
//! empty subtree. 10^6 accounts take 43 MB.

// Indices are node numbers below the length of the level that they index; `set` is the one way in.
#![allow(clippy::indexing_slicing)]

use std::{array, collections::BTreeSet, sync::LazyLock};

use ark_ff::Zero as _;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{AccountIndex, Digest, Field, poseidon::Native, statement::node};

/// Levels above the leaves.
pub const DEPTH: usize = 12;
/// Children of a node.
pub const ARITY: usize = 4;
/// Leaves at most: 2^24.
pub const CAPACITY: usize = ARITY.pow(DEPTH as u32);

/// Fewer hashes are not spread over cores: handing them out would cost more.
pub(crate) const MIN_HASHES_A_CORE: usize = 64;

/// Roots of empty subtrees, by height; an unused leaf is 0.
static EMPTY: LazyLock<[Field; DEPTH + 1]> = LazyLock::new(|| {
    let mut empty = [Field::zero(); DEPTH + 1];
    for height in 1..=DEPTH {
        empty[height] = node(&mut Native, [empty[height - 1]; ARITY]);
    }
    empty
});

/// The siblings from a leaf up to the root: at each level the three other children, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MerklePath {
    siblings: [[Digest; ARITY - 1]; DEPTH],
}

impl MerklePath {
    /// The siblings, from the leaf's level upwards.
    pub fn siblings(&self) -> &[[Digest; ARITY - 1]; DEPTH] {
        &self.siblings
    }

    /// The same path with other siblings; for tests that tamper with one.
    pub fn from_siblings(siblings: [[Digest; ARITY - 1]; DEPTH]) -> Self {
        Self { siblings }
    }

    /// At each level, the four children of the node on the way from `leaf` to the root, then the root.
    pub fn children(&self, index: AccountIndex, leaf: Digest) -> ([[Field; ARITY]; DEPTH], Digest) {
        let mut levels = [[Field::zero(); ARITY]; DEPTH];
        let mut current = leaf.0;
        for (height, (level, siblings)) in levels.iter_mut().zip(&self.siblings).enumerate() {
            let position = position(index, height);
            let mut others = siblings.iter();
            *level = array::from_fn(|i| {
                if i == position {
                    current
                } else {
                    others.next().copied().unwrap_or_default().0
                }
            });
            current = node(&mut Native, *level);
        }
        (levels, Digest(current))
    }

    /// The root of the tree that has `leaf` at `index`.
    pub fn root(&self, index: AccountIndex, leaf: Digest) -> Digest {
        self.children(index, leaf).1
    }

    /// Whether the tree with this root has `leaf` at `index`.
    pub fn verify(&self, index: AccountIndex, leaf: Digest, root: Digest) -> bool {
        (index.0 as usize) < CAPACITY && self.root(index, leaf) == root
    }
}

/// Which child of its parent the node above `index` at `height` is.
fn position(index: AccountIndex, height: usize) -> usize {
    (index.0 as usize >> (2 * height)) % ARITY
}

/// The tree. Leaf `i` may be set when leaves `0..i` are.
#[derive(Clone, Debug)]
pub struct Tree {
    levels: [Vec<Field>; DEPTH + 1],
    /// Levels above the leaves: [`DEPTH`], but in [`Tree::shallow`].
    height: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            levels: array::from_fn(|_| Vec::new()),
            height: DEPTH,
        }
    }
}

impl Tree {
    /// An empty tree of fewer levels, for simulations: it hashes less. No circuit proves what happens in it, and its
    /// paths do not verify.
    pub fn shallow(height: usize) -> Self {
        Self {
            height: height.min(DEPTH),
            ..Self::default()
        }
    }

    /// Leaves at most.
    pub(crate) fn capacity(&self) -> usize {
        CAPACITY >> (2 * (DEPTH - self.height))
    }

    /// Builds all levels at once, on all cores. Leaves past [`CAPACITY`] are left out.
    pub fn from_leaves(leaves: Vec<Digest>) -> Self {
        let mut tree = Self::default();
        tree.levels[0] = leaves
            .into_iter()
            .take(CAPACITY)
            .map(|leaf| leaf.0)
            .collect();
        for height in 1..=DEPTH {
            let empty = EMPTY[height - 1];
            tree.levels[height] = tree.levels[height - 1]
                .par_chunks(ARITY)
                .map(|children| {
                    let full = array::from_fn(|i| children.get(i).copied().unwrap_or(empty));
                    node(&mut Native, full)
                })
                .collect();
        }
        tree
    }

    /// Used leaves.
    pub fn len(&self) -> usize {
        self.levels[0].len()
    }

    /// Whether no leaf is used.
    pub fn is_empty(&self) -> bool {
        self.levels[0].is_empty()
    }

    /// The root.
    pub fn root(&self) -> Digest {
        Digest(self.node(self.height, 0))
    }

    /// The leaf at `index`; 0 if unused.
    pub fn leaf(&self, index: AccountIndex) -> Digest {
        Digest(self.node(0, index.0 as usize))
    }

    /// The siblings of the leaf at `index`, used or not.
    pub fn path(&self, index: AccountIndex) -> MerklePath {
        let siblings = array::from_fn(|height| {
            let at = index.0 as usize >> (2 * height);
            let first = at - at % ARITY;
            let mut others = (first..first + ARITY).filter(|&i| i != at);
            array::from_fn(|_| {
                Digest(
                    others
                        .next()
                        .map_or(EMPTY[height], |i| self.node(height, i)),
                )
            })
        });
        MerklePath { siblings }
    }

    /// Sets a used leaf, or the first unused one, and the nodes above it. Returns false, and changes nothing, for
    /// any other index.
    #[must_use]
    pub fn set(&mut self, index: AccountIndex, leaf: Digest) -> bool {
        let at = index.0 as usize;
        if at > self.len() || at >= self.capacity() {
            return false;
        }
        self.put(0, at, leaf.0);
        for height in 1..=self.height {
            self.recompute(height, at >> (2 * height));
        }
        true
    }

    /// To `len` leaves, with some of the first of them replaced or, in order, appended; hashes each node above them once.
    pub(crate) fn restore(
        &mut self,
        len: usize,
        leaves: impl IntoIterator<Item = (AccountIndex, Digest)>,
    ) {
        let mut dirty = BTreeSet::new();
        if len < self.len() {
            for (height, level) in self.levels.iter_mut().enumerate() {
                level.truncate(len.div_ceil(ARITY.pow(height as u32)));
            }
            dirty.extend(len.checked_sub(1));
        }
        for (index, leaf) in leaves {
            if (index.0 as usize) < len {
                self.put(0, index.0 as usize, leaf.0);
                dirty.insert(index.0 as usize);
            }
        }
        for height in 1..=self.height {
            dirty = dirty.into_iter().map(|at| at / ARITY).collect();
            let parents: Vec<usize> = dirty.iter().copied().collect();
            let nodes: Vec<Field> = parents
                .par_iter()
                .with_min_len(MIN_HASHES_A_CORE)
                .map(|&at| self.parent(height, at))
                .collect();
            for (at, node) in parents.into_iter().zip(nodes) {
                self.put(height, at, node);
            }
        }
    }

    fn node(&self, height: usize, at: usize) -> Field {
        self.levels[height]
            .get(at)
            .copied()
            .unwrap_or(EMPTY[height])
    }

    fn put(&mut self, height: usize, at: usize, value: Field) {
        let level = &mut self.levels[height];
        if at < level.len() {
            level[at] = value
        } else {
            level.push(value)
        }
    }

    /// What the node at a place must be.
    fn parent(&self, height: usize, at: usize) -> Field {
        let children = array::from_fn(|i| self.node(height - 1, at * ARITY + i));
        node(&mut Native, children)
    }

    fn recompute(&mut self, height: usize, at: usize) {
        let node = self.parent(height, at);
        self.put(height, at, node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u64) -> Digest {
        Digest(Field::from(n))
    }

    #[test]
    fn one_by_one_and_all_at_once_give_the_same_root() {
        let mut tree = Tree::default();
        assert_eq!(tree.root(), Digest(EMPTY[DEPTH]));
        let leaves: Vec<Digest> = (1..=21).map(leaf).collect();
        for (i, leaf) in leaves.iter().enumerate() {
            assert!(tree.set(AccountIndex(i as u32), *leaf));
        }
        assert_eq!(tree.root(), Tree::from_leaves(leaves).root());
    }

    #[test]
    fn a_path_proves_its_leaf_at_its_index_only() {
        let tree = Tree::from_leaves((1..=21).map(leaf).collect());
        for i in [0, 5, 20, 21, 4000] {
            let index = AccountIndex(i);
            let path = tree.path(index);
            assert!(path.verify(index, tree.leaf(index), tree.root()));
            assert!(!path.verify(index, leaf(99), tree.root()));
            // Unused leaves all look alike; a used one is at its own place only.
            assert_eq!(
                path.verify(AccountIndex(i ^ 1), tree.leaf(index), tree.root()),
                i as usize > tree.len()
            );
        }
        let path = tree.path(AccountIndex(3));
        assert!(!path.verify(
            AccountIndex(3 + CAPACITY as u32),
            tree.leaf(AccountIndex(3)),
            tree.root()
        ));
    }

    #[test]
    fn restore_undoes_sets_and_appends() {
        for len in [0, 1, 4, 16, 17] {
            let before = Tree::from_leaves((1..=len).map(leaf).collect());
            let mut tree = before.clone();
            for i in 0..9 {
                assert!(tree.set(AccountIndex(len as u32 + i), leaf(7)));
            }
            let mut undo = Vec::new();
            if len > 0 {
                undo.push((AccountIndex(0), tree.leaf(AccountIndex(0))));
                assert!(tree.set(AccountIndex(0), leaf(8)));
            }
            tree.restore(len as usize, undo);
            assert_eq!(tree.root(), before.root());
            assert_eq!(tree.len(), before.len());
        }
    }

    #[test]
    fn leaves_are_set_from_the_left() {
        let mut tree = Tree::default();
        assert!(!tree.set(AccountIndex(1), leaf(1)));
        assert_eq!(tree.root(), Tree::default().root());
    }

    #[test]
    fn a_shallow_tree_is_the_full_one_with_fewer_levels() {
        let leaves: Vec<Digest> = (1..=16).map(leaf).collect();
        let mut shallow = Tree::shallow(2);
        for (i, leaf) in leaves.iter().enumerate() {
            assert!(shallow.set(AccountIndex(i as u32), *leaf));
        }
        assert!(!shallow.set(AccountIndex(16), leaf(17)), "it is full");
        let full = Tree::from_leaves(leaves);
        assert_eq!(shallow.root(), Digest(full.node(2, 0)));
        assert_eq!(Tree::shallow(2).root(), Digest(EMPTY[2]));
    }
}
