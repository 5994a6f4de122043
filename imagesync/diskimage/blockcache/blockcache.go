// Package blockcache keeps the blocks of a disk that were used last, within a fixed
// amount of memory.
package blockcache

import "container/list"

// Cache holds at most a fixed number of blocks of one size. Not for concurrent use.
type Cache struct {
	size, most int
	blocks     map[uint64]*list.Element
	order      *list.List // most recently used first
}

type block struct {
	key  uint64
	data []byte
}

// fewest blocks are kept even when they take more than the memory that was asked
// for: a walk down a tree needs its way.
const fewest = 8

// New makes a cache of blocks of size bytes in about memory bytes.
func New(size, memory int) *Cache {
	return &Cache{size: size, most: max(fewest, memory/size), blocks: map[uint64]*list.Element{}, order: list.New()}
}

// Get returns the block of that key, which fill writes when it is not there. The
// block is the cache's: it is valid until the next call.
func (c *Cache) Get(key uint64, fill func(block []byte) error) ([]byte, error) {
	if e, ok := c.blocks[key]; ok {
		c.order.MoveToFront(e)
		return e.Value.(*block).data, nil
	}
	b := c.victim()
	if err := fill(b.data); err != nil {
		return nil, err
	}
	b.key = key
	c.blocks[key] = c.order.PushFront(b)
	return b.data, nil
}

// victim takes the least recently used block out when the cache is full.
func (c *Cache) victim() *block {
	if c.order.Len() < c.most {
		return &block{data: make([]byte, c.size)}
	}
	last := c.order.Back()
	b := c.order.Remove(last).(*block)
	delete(c.blocks, b.key)
	return b
}
