// SPDX-License-Identifier: MPL-2.0

package main

import (
	"hash/maphash"
	"unsafe"
)

// States numbers states in the order in which they are found. They are kept once and hashed as the
// bytes that they are made of, which takes a fraction of the time and memory of a map.
type States[S comparable] struct {
	chunks [][]S
	count  int32
	slots  []int32 // number + 1, 0 for none
	seed   maphash.Seed
}

const chunk = 1 << 14

// NewStates panics if a state has parts of more than a byte: between these may be bytes that are no
// part of it, and what they point to would not be looked at.
func NewStates[S comparable]() *States[S] {
	var s S
	if unsafe.Alignof(s) != 1 {
		panic("a state is to be made of bytes alone")
	}
	return &States[S]{slots: make([]int32, chunk), seed: maphash.MakeSeed()}
}

// At is the state of a number. It is not to be changed.
func (t *States[S]) At(i int32) *S { return &t.chunks[i/chunk][i%chunk] }

// Add gives the number of a state, and whether it is a new one.
func (t *States[S]) Add(s S) (int32, bool) {
	slot := t.slotOf(&s)
	if t.slots[slot] != 0 {
		return t.slots[slot] - 1, false
	}
	i := t.count
	if i%chunk == 0 {
		t.chunks = append(t.chunks, make([]S, chunk))
	}
	*t.At(i) = s
	t.count++
	t.slots[slot] = t.count
	if int(t.count) > len(t.slots)/2 {
		t.slots = make([]int32, 2*len(t.slots))
		for k := int32(0); k < t.count; k++ {
			t.slots[t.slotOf(t.At(k))] = k + 1
		}
	}
	return i, true
}

// slotOf is where the number of a state is, or would be.
func (t *States[S]) slotOf(s *S) int {
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
	mask := len(t.slots) - 1
	at := int(maphash.Bytes(t.seed, bytes)) & mask
	for t.slots[at] != 0 && *t.At(t.slots[at] - 1) != *s {
		at = (at + 1) & mask
	}
	return at
}
