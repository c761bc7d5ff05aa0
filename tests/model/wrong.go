// SPDX-License-Identifier: MPL-2.0

package main

// Wrong says in a byte of a state what has been seen to go wrong, 0 if nothing has.
type Wrong uint8

var wrongs = []string{""}

// wrongOf is for package variables: states are compared by what it gives.
func wrongOf(text string) Wrong {
	wrongs = append(wrongs, text)
	return Wrong(len(wrongs) - 1)
}

func (w Wrong) String() string { return wrongs[w] }
