//! Greedy placement of blocks, each at the lowest offset it fits.

/// A block in plain numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    /// Index in the caller's list.
    pub(super) id: usize,
    pub(super) size: u64,
    pub(super) t0: u32,
    pub(super) t1: u32,
    /// The largest profile value the block meets. Blocks that meet the peak must tile it
    /// exactly, so they are placed first.
    pub(super) crest: u64,
}

impl Item {
    pub(super) fn span(&self) -> u64 {
        u64::from(self.t1 - self.t0)
    }
}

/// A placed block as its neighbours in the arena see it.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Live {
    pub(super) offset: u64,
    pub(super) end: u64,
    /// When its bytes are free again.
    pub(super) until: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u64,
    end: u64,
    t0: u32,
    t1: u32,
    item: u32,
}

/// Placed blocks, by offset.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    slots: Vec<Slot>,
    height: u64,
}

impl Placed {
    /// The end of the highest block.
    pub(super) fn height(&self) -> u64 {
        self.height
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The blocks' numbers and offsets.
    pub(super) fn offsets(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.slots.iter().map(|s| (s.item, s.offset))
    }

    /// Places block number `id` at the lowest offset it fits, and returns that.
    pub(super) fn put(&mut self, item: &Item, id: u32) -> u64 {
        let offset = self.lowest(item);
        let slot = Slot { offset, end: offset + item.size, t0: item.t0, t1: item.t1, item: id };
        self.height = self.height.max(slot.end);
        let at = self.slots.partition_point(|s| s.offset <= offset);
        self.slots.insert(at, slot);
        offset
    }

    fn lowest(&self, item: &Item) -> u64 {
        let mut cursor = 0;
        for s in &self.slots {
            if s.t0 < item.t1 && item.t0 < s.t1 {
                if s.offset >= cursor + item.size {
                    return cursor;
                }
                cursor = cursor.max(s.end);
            }
        }
        cursor
    }

    /// The placed blocks whose lifetimes meet the item's, by offset.
    pub(super) fn meeting(&self, item: &Item) -> Vec<Live> {
        let meets = |s: &&Slot| s.t0 < item.t1 && item.t0 < s.t1;
        let live = |s: &Slot| Live { offset: s.offset, end: s.end, until: s.t1 };
        self.slots.iter().filter(meets).map(live).collect()
    }
}
