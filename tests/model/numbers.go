// SPDX-License-Identifier: MPL-2.0

package main

// Sets of up to eight are bits of a byte; nodes count from 1.

func has(set uint8, n int8) bool { return set&(1<<(n-1)) != 0 }

func bits(set uint8) int {
	n := 0
	for ; set > 0; set &= set - 1 {
		n++
	}
	return n
}

func isMajority(set, of uint8) bool { return bits(set&of) > bits(of)/2 }

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

func min[T int | int8 | uint8](a, b T) T {
	if a < b {
		return a
	}
	return b
}

func max[T int | int8 | uint8](a, b T) T {
	if a > b {
		return a
	}
	return b
}
