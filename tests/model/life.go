// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// Rules C1, C3 and C5. An exchange is deleted and declared again, several times,
// while nodes are cut off or down. Each life has a group of three members, one a node. Three nodes,
// of which one at a time may be cut off; a linearizable record says which life is the present one,
// and each node's copy of it may be late.
//
// A log is the set of lives of which it holds messages, and a rank (term and length): a member leads
// if a majority of those that answer to its name has no higher rank, and they take its log.

type lifeRules struct {
	// Servers of all lives have one name, that of the exchange.
	sharedName bool
	// Every member that is found on disk is started, whatever the node's copy names.
	bootsAll bool
	// A node starts a member of a life that its own copy does not name yet.
	startsUnnamed bool
	// A node's delay queue process goes on into the next life.
	queueGoesOn bool
	// Members that the copy does not name are left as they are.
	keepsOld bool
	// A dispatcher releases whatever life the node's copy names.
	releasesAnyLife bool
	sorted          bool
}

const (
	lifeNodes = 3
	maxLives  = 2
)

var (
	olderReleased = wrongOf("a message of an older life is released")
	otherConfirms = wrongOf("confirmed by the group of another life")
)

type member struct {
	files, running bool
	had            bool // an empty one is never started twice
	log            uint8
	rank           int8
}

type lifeState struct {
	cutOff, cuts, restarts int8
	lives, truth           int8
	copies, queues         [lifeNodes + 1]int8
	members                [lifeNodes + 1][maxLives + 1]member
	confirmed              uint8
	wrong                  Wrong
}

func lifeModel(r lifeRules) Model[lifeState] {
	return Model[lifeState]{
		Init:  []lifeState{{cuts: 2, restarts: 2}},
		Canon: r.canon(),
		Next:  func(s lifeState, to func(Label, lifeState)) { r.next(s, to) },
		Check: func(s lifeState) string {
			if s.wrong != 0 || s.truth == 0 || s.confirmed&(1<<s.truth) == 0 {
				return s.wrong.String()
			}
			copies := 0
			for _, m := range s.members {
				if m[1].log&(1<<s.truth) != 0 || m[2].log&(1<<s.truth) != 0 {
					copies++
				}
			}
			if copies <= lifeNodes/2 {
				return "confirmed and not on a majority"
			}
			return ""
		},
		Goal: func(s lifeState) bool {
			for n := 1; n <= lifeNodes; n++ {
				for l := int8(1); l <= maxLives; l++ {
					if s.members[n][l].files && l != s.truth {
						return false
					}
				}
			}
			return s.truth == 0 || s.confirmed&(1<<s.truth) != 0
		},
		Show: func(s lifeState) string {
			text := fmt.Sprintf("life %d, copies %v, logs", s.truth, s.copies[1:])
			for n := 1; n <= lifeNodes; n++ {
				for l := 1; l <= maxLives; l++ {
					if m := s.members[n][l]; m.files {
						text += fmt.Sprintf(" node %d life %d: %b rank %d,", n, l, m.log, m.rank)
					}
				}
			}
			return text
		},
	}
}

// canon sorts the nodes, which are alike. Traces are easier to read without.
func (r lifeRules) canon() func(lifeState) lifeState {
	if !r.sorted {
		return nil
	}
	key := func(s *lifeState, n int8) (k uint64) {
		for l := 1; l <= maxLives; l++ {
			m := s.members[n][l]
			k = k<<8 | uint64(m.log)<<5 | uint64(m.rank)<<3 | uint64(truth(m.files))<<2 |
				uint64(truth(m.running))<<1 | uint64(truth(m.had))
		}
		return k<<5 | uint64(s.copies[n])<<3 | uint64(s.queues[n])<<1 | uint64(truth(s.cutOff == n))
	}
	swap := func(s *lifeState, a, b int8) {
		if key(s, a) <= key(s, b) {
			return
		}
		s.members[a], s.members[b] = s.members[b], s.members[a]
		s.copies[a], s.copies[b] = s.copies[b], s.copies[a]
		s.queues[a], s.queues[b] = s.queues[b], s.queues[a]
		switch s.cutOff {
		case a:
			s.cutOff = b
		case b:
			s.cutOff = a
		}
	}
	return func(s lifeState) lifeState {
		swap(&s, 1, 2)
		swap(&s, 2, 3)
		swap(&s, 1, 2)
		return s
	}
}

func lifeReach(n, m, cutOff int8) bool { return n == m || n != cutOff && m != cutOff }

func (s *lifeState) reachesMajority(n int8) bool { return n != s.cutOff }

// answering are the running members that node n reaches under the name of life l.
func (r lifeRules) answering(s *lifeState, n, l int8) [][2]int8 {
	var found [][2]int8
	for m := int8(1); m <= lifeNodes; m++ {
		for k := int8(1); k <= maxLives; k++ {
			if (k == l || r.sharedName) && lifeReach(n, m, s.cutOff) && s.members[m][k].running {
				found = append(found, [2]int8{m, k})
			}
		}
	}
	return found
}

func (r lifeRules) next(s lifeState, to func(Label, lifeState)) {
	r.world(s, to)
	for n := int8(1); n <= lifeNodes; n++ {
		l := s.copies[n]
		if l != 0 {
			for m := int8(1); m <= lifeNodes; m++ {
				r.start(s, n, m, l, to)
			}
			r.publish(s, n, l, to)
		}
		for k := int8(1); k <= maxLives; k++ {
			m := s.members[n][k]
			if m.running {
				r.lead(s, n, k, to)
			} else if m.files && k == l && (!r.sharedName || runningSet(&s, n) == 0) {
				n1 := s
				n1.members[n][k].running = true
				to(L("node %d starts its member of life %d again", int(n), int(k)), n1)
			}
			if m.files && k != l && !r.keepsOld {
				n1 := s
				n1.members[n][k] = member{had: true}
				to(L("node %d puts its member of life %d aside", int(n), int(k)), n1)
			}
		}
	}
}

func (r lifeRules) world(s lifeState, to func(Label, lifeState)) {
	for n := int8(1); n <= lifeNodes; n++ {
		n1 := s
		switch {
		case s.cutOff == 0 && s.cuts > 0:
			n1.cutOff = n
			n1.cuts--
			to(Fault("node %d is cut off", int(n)), n1)
		case s.cutOff == n:
			n1.cutOff = 0
			to(L("node %d is back", int(n)), n1)
		}
		if s.restarts > 0 {
			n1 = s
			n1.restarts--
			n1.queues[n] = 0
			for k := int8(1); k <= maxLives; k++ {
				m := &n1.members[n][k]
				m.running = m.files && (r.bootsAll || s.copies[n] == k)
			}
			if !r.sharedName || bits(runningSet(&n1, n)) < 2 {
				to(Fault("node %d restarts", int(n)), n1)
			}
		}
		if !s.reachesMajority(n) {
			continue
		}
		n1 = s
		switch {
		case s.copies[n] != s.truth:
			n1.copies[n] = s.truth
			to(L("node %d's copy is up to date", int(n)), n1)
		case s.truth == 0 && s.lives < maxLives:
			n1.lives++
			n1.truth, n1.copies[n] = n1.lives, n1.lives
			to(Fault("the exchange is declared on node %d, life %d", int(n), int(n1.lives)), n1)
		case s.truth != 0:
			n1.truth, n1.copies[n] = 0, 0
			to(Fault("the exchange is deleted on node %d", int(n)), n1)
		}
	}
}

func runningSet(s *lifeState, n int8) uint8 {
	set := uint8(0)
	for k := 1; k <= maxLives; k++ {
		if s.members[n][k].running {
			set |= 1 << k
		}
	}
	return set
}

func (r lifeRules) start(s lifeState, n, m, l int8, to func(Label, lifeState)) {
	if s.members[m][l].had || !lifeReach(n, m, s.cutOff) || s.copies[m] != l && !r.startsUnnamed ||
		r.sharedName && runningSet(&s, m) != 0 {
		return
	}
	n1 := s
	n1.members[m][l] = member{files: true, running: true, had: true}
	to(L("node %d has node %d start its member of life %d", int(n), int(m), int(l)), n1)
}

// lead: a member wins an election and the others take its log; its dispatcher releases.
func (r lifeRules) lead(s lifeState, n, k int8, to func(Label, lifeState)) {
	mine := s.members[n][k]
	n1 := s
	followers := 0
	for _, m := range r.answering(&s, n, k) {
		other := &n1.members[m[0]][m[1]]
		if other.rank <= mine.rank {
			other.log, other.rank = mine.log, mine.rank
			followers++
		}
	}
	if followers > lifeNodes/2 && n1 != s {
		to(L("node %d's member of life %d leads, the others take its log", int(n), int(k)), n1)
	}
	named := s.copies[n]
	if named == 0 || mine.log == 0 || !r.releasesAnyLife && named != k {
		return
	}
	n1 = s
	if mine.log&(1<<named-1) != 0 {
		n1.wrong = olderReleased
		to(L("node %d's member of life %d releases, the exchange being life %d", int(n), int(k),
			int(named)), n1)
	}
}

// publish: a message to the exchange as node n knows it goes to the group of the node's delay queue
// process, is stored and confirmed.
func (r lifeRules) publish(s lifeState, n, l int8, to func(Label, lifeState)) {
	n1 := s
	group := l
	if r.queueGoesOn {
		if s.queues[n] == 0 {
			n1.queues[n] = l
		}
		group = n1.queues[n]
	}
	all := r.answering(&s, n, group)
	for _, first := range all {
		leader := s.members[first[0]][first[1]]
		n2, same := n1, 0
		for _, m := range all {
			if got := s.members[m[0]][m[1]]; got.log == leader.log && got.rank == leader.rank {
				same++
				other := &n2.members[m[0]][m[1]]
				other.log |= 1 << l
				other.rank = min(other.rank+1, 2)
			}
		}
		if same <= lifeNodes/2 {
			continue
		}
		n2.confirmed |= 1 << l
		if group != l {
			n2.wrong = otherConfirms
		}
		if n2 != s {
			to(L("node %d confirms a message of life %d by the group of life %d", int(n), int(l),
				int(group)), n2)
		}
		return
	}
}

func lifeCases() []Case {
	build := func(name, breaks string, r lifeRules) Case {
		return caseOf("life/"+name, breaks, lifeModel(r))
	}
	return []Case{
		build("rules", "", lifeRules{sorted: true}),
		build("rules, boots all", "", lifeRules{bootsAll: true, sorted: true}),
		build("C1: one name for all lives", "not on a majority", lifeRules{sharedName: true}),
		build("C1: one name, old members stay", "older life is released",
			lifeRules{sharedName: true, bootsAll: true, keepsOld: true}),
		build("C3: starts what is not named", "not on a majority", lifeRules{startsUnnamed: true}),
		build("C5: queue process goes on", "another life", lifeRules{queueGoesOn: true}),
		build("C5: releases in any life", "older life is released", lifeRules{releasesAnyLife: true}),
	}
}
