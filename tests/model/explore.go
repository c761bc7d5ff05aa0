// SPDX-License-Identifier: MPL-2.0

package main

import (
	"fmt"
	"strings"
	"time"
)

// Label names one step of a trace. It holds its arguments unformatted, because a run makes millions.
type Label struct {
	format string
	args   [3]int
	fault  bool
}

// L is a step of the protocol.
func L(format string, args ...int) Label {
	l := Label{format: format}
	copy(l.args[:], args)
	return l
}

// Fault is a step of the world: a crash, a loss, an operator. No goal may wait for one.
func Fault(format string, args ...int) Label {
	l := L(format, args...)
	l.fault = true
	return l
}

func (l Label) String() string {
	n := strings.Count(l.format, "%")
	args := make([]any, n)
	for i := range args {
		args[i] = l.args[i]
	}
	return fmt.Sprintf(l.format, args...)
}

// Model is a transition system whose states are compared with ==.
type Model[S comparable] struct {
	Init []S
	// Next calls to for each successor of s.
	Next func(s S, to func(Label, S))
	// Check says what is wrong with s, "" if nothing is.
	Check func(s S) string
	// Goal, if given, must stay reachable from every state by steps of the protocol alone.
	Goal func(s S) bool
	// Canon, if given, picks one of the states that differ in nodes' numbers only.
	Canon func(s S) S
	// Show, if given, is what the state in which a trace ends looks like.
	Show func(s S) string
}

// Result of an exhaustive search, breadth first, so that Trace is a shortest one.
type Result struct {
	States, Depth int
	// What is wrong with a state, "" if nothing is with any.
	Wrong string
	// The steps to that state, and what it looks like.
	Trace []string
	End   string
	Took  time.Duration
	// All states were looked at.
	Full bool
}

// Explore looks at all states that can be reached, unless there are more than limit.
func Explore[S comparable](m Model[S], limit int) Result {
	began := time.Now()
	var (
		r      Result
		states = NewStates[S]()
		parent []int32
		depth  []int16
		edges  [][2]int32
	)
	add := func(s S, from int32, d int16) int32 {
		i, isNew := states.Add(m.canon(s))
		if isNew {
			parent = append(parent, from)
			depth = append(depth, d)
		}
		return i
	}
	finish := func(at int32, wrong string) Result {
		r.States, r.Wrong, r.Took = int(states.count), wrong, time.Since(began)
		if len(depth) > 0 {
			r.Depth = int(depth[len(depth)-1])
		}
		if at >= 0 {
			r.Trace = trace(m, states, parent, at)
			if m.Show != nil {
				r.End = m.Show(*states.At(at))
			}
		}
		return r
	}
	for _, s := range m.Init {
		add(s, -1, 0)
	}
	for i := int32(0); i < states.count; i++ {
		s := *states.At(i)
		if wrong := m.Check(s); wrong != "" {
			return finish(i, wrong)
		}
		if int(states.count) > limit {
			return finish(-1, "")
		}
		m.Next(s, func(l Label, next S) {
			j := add(next, i, depth[i]+1)
			if m.Goal != nil && !l.fault && i != j {
				edges = append(edges, [2]int32{i, j})
			}
		})
	}
	r.Full = true
	if m.Goal != nil {
		if at := stranded(m.Goal, states, edges); at >= 0 {
			return finish(at, "stuck: no step of the protocol leads out")
		}
	}
	return finish(-1, "")
}

func (m Model[S]) canon(s S) S {
	if m.Canon == nil {
		return s
	}
	return m.Canon(s)
}

// stranded finds a state from which no path along edges leads to a goal, a dead end if there is one,
// or -1.
func stranded[S comparable](goal func(S) bool, states *States[S], edges [][2]int32) int32 {
	count := states.count
	start := make([]int32, count+1)
	for _, e := range edges {
		start[e[1]+1]++
	}
	for i := range start[1:] {
		start[i+1] += start[i]
	}
	sources := make([]int32, len(edges))
	at := append([]int32(nil), start...)
	for _, e := range edges {
		sources[at[e[1]]] = e[0]
		at[e[1]]++
	}
	good := make([]bool, count)
	var todo []int32
	for i := int32(0); i < count; i++ {
		if goal(*states.At(i)) {
			good[i] = true
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, from := range sources[start[i]:start[i+1]] {
			if !good[from] {
				good[from] = true
				todo = append(todo, from)
			}
		}
	}
	leaves := make([]bool, count)
	for _, e := range edges {
		leaves[e[0]] = true
	}
	first := int32(-1)
	for i := range good {
		switch {
		case good[i]:
		case !leaves[i]:
			return int32(i)
		case first < 0:
			first = int32(i)
		}
	}
	return first
}

func trace[S comparable](m Model[S], states *States[S], parent []int32, at int32) []string {
	var path []int32
	for i := at; i >= 0; i = parent[i] {
		path = append([]int32{i}, path...)
	}
	var steps []string
	for k := 1; k < len(path); k++ {
		found := false
		m.Next(*states.At(path[k-1]), func(l Label, next S) {
			if !found && m.canon(next) == *states.At(path[k]) {
				found = true
				steps = append(steps, l.String())
			}
		})
	}
	return steps
}
