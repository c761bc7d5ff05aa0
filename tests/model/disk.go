// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// Rule C6. A member loses its disk. Here Raft itself is modelled, with its terms,
// votes, logs and single-server changes of the configuration, because its proof assumes that no
// member forgets. Members 0, 1 and 2 are there at first; node 2 loses its disk once; 3 is the name
// under which it may come back.

type rejoinRule int

const (
	rejoinNewName rejoinRule = iota // removed, then added under a name that was never used
	rejoinOldName                   // removed, then added under its old name
	restartEmpty                    // started again with nothing, its name being in the configuration
	restartMute                     // the same, but it neither votes nor counts until it has the log
	restartShort                    // started with an older copy: term and vote are there, an entry is not
)

const (
	raftMembers = 4
	raftTerms   = 4
	raftLog     = 5
	lossy       = 2
)

var (
	leaderLacks    = wrongOf("a leader lacks what is committed")
	commitReplaced = wrongOf("what was committed is replaced")
)

type entryKind int8

const (
	data entryKind = iota
	removeLossy
	addOldName
	addNewName
)

type entry struct {
	term int8
	kind entryKind
}

type raftRole int8

const (
	follower raftRole = iota
	candidate
	leader
)

type raftMember struct {
	running, mute  bool
	role           raftRole
	term, votedFor int8 // votedFor: member + 1
	votes          uint8
	length         int8
	log            [raftLog]entry
	match          [raftMembers]int8
}

type raftState struct {
	members   [raftMembers]raftMember
	lost      bool
	committed [raftLog]entry
	// The terms in which they were.
	committedIn [raftLog]int8
	commits     int8
	wrong       Wrong
}

type diskRules struct{ rejoin rejoinRule }

func (r diskRules) restarts() bool { return r.rejoin >= restartEmpty }

func diskModel(r diskRules) Model[raftState] {
	var first raftState
	for i := 0; i < 3; i++ {
		first.members[i].running = true
	}
	return Model[raftState]{
		Init:  []raftState{first},
		Next:  func(s raftState, to func(Label, raftState)) { r.next(s, to) },
		Check: func(s raftState) string { return s.wrong.String() },
		Show: func(s raftState) string {
			text := ""
			for i, m := range s.members {
				text += fmt.Sprintf("member %d term %d log %v; ", i, m.term, m.log[:m.length])
			}
			return text + fmt.Sprintf("committed %v", s.committed[:s.commits])
		},
	}
}

// config is the set of members by the last change in a log, committed or not.
func (m *raftMember) config() uint8 {
	config := uint8(0b0111)
	for _, e := range m.log[:m.length] {
		switch e.kind {
		case removeLossy:
			config &^= 1 << lossy
		case addOldName:
			config |= 1 << lossy
		case addNewName:
			config |= 1 << 3
		}
	}
	return config
}

func (m *raftMember) last() entry {
	if m.length == 0 {
		return entry{}
	}
	return m.log[m.length-1]
}

func (m *raftMember) upToDateFor(voter *raftMember) bool {
	a, b := m.last().term, voter.last().term
	return a > b || a == b && m.length >= voter.length
}

func (r diskRules) next(s raftState, to func(Label, raftState)) {
	if !s.lost {
		n := s
		n.lost = true
		old := s.members[lossy]
		n.members[lossy] = raftMember{running: r.restarts(), mute: r.rejoin == restartMute}
		if r.rejoin == restartShort {
			m := &n.members[lossy]
			m.term, m.votedFor, m.log, m.length = old.term, old.votedFor, old.log, max(old.length-1, 0)
			m.log[m.length] = entry{}
		}
		to(Fault("member 2 loses its disk"), n)
	}
	for i := range s.members {
		m := &s.members[i]
		if !m.running || m.mute {
			continue
		}
		r.elect(s, i, to)
		if m.role == leader {
			r.lead(s, i, to)
		}
	}
}

func (r diskRules) elect(s raftState, i int, to func(Label, raftState)) {
	m := &s.members[i]
	if m.term < raftTerms && m.role != leader && m.config()&(1<<i) != 0 {
		n := s
		c := &n.members[i]
		c.role, c.term, c.votedFor, c.votes = candidate, m.term+1, int8(i+1), 1<<i
		c.match = [raftMembers]int8{}
		to(L("member %d stands in term %d", i, int(c.term)), n)
	}
	if m.role != candidate {
		return
	}
	for j := range s.members {
		v := &s.members[j]
		if j == i || !v.running || v.mute || m.config()&(1<<j) == 0 || v.term > m.term ||
			v.term == m.term && v.votedFor != 0 && v.votedFor != int8(i+1) || !m.upToDateFor(v) ||
			m.votes&(1<<j) != 0 {
			continue
		}
		n := s
		n.members[j].role, n.members[j].term, n.members[j].votedFor = follower, m.term, int8(i+1)
		n.members[j].votes = 0
		n.members[i].votes |= 1 << j
		to(L("member %d votes for %d in term %d", j, i, int(m.term)), n)
	}
	if isMajority(m.votes, m.config()) {
		n := s
		n.members[i].role, n.members[i].votes = leader, 0
		for k := int8(0); k < s.commits; k++ {
			if s.committedIn[k] < m.term && (k >= m.length || m.log[k] != s.committed[k]) {
				n.wrong = leaderLacks
			}
		}
		to(L("member %d leads in term %d", i, int(m.term)), n)
	}
}

func (r diskRules) lead(s raftState, i int, to func(Label, raftState)) {
	m := &s.members[i]
	config := m.config()
	for j := range s.members {
		f := &s.members[j]
		if j == i || config&(1<<j) == 0 || !f.running || f.term > m.term ||
			f.term == m.term && f.role == leader {
			continue
		}
		n := s
		g := &n.members[j]
		if g.term < m.term {
			g.votedFor = 0
		}
		g.role, g.term, g.votes, g.match = follower, m.term, 0, [raftMembers]int8{}
		g.log, g.length = m.log, m.length
		if g.mute {
			g.mute, g.votedFor = false, int8(i+1)
		}
		n.members[i].match[j] = m.length
		if n != s {
			to(L("member %d has the log of leader %d", j, i), n)
		}
	}
	committed := int8(0)
	for k := m.length; k > 0 && m.log[k-1].term == m.term; k-- {
		acked := uint8(1) << i
		for j := range s.members {
			if m.match[j] >= k {
				acked |= 1 << j
			}
		}
		if isMajority(acked, config) {
			committed = k
			break
		}
	}
	if committed > 0 && (s.commits < committed || s.committed[committed-1] != m.log[committed-1]) {
		n := s
		for k := int8(0); k < committed; k++ {
			if k < s.commits && s.committed[k] != m.log[k] {
				n.wrong = commitReplaced
			}
			if n.committedIn[k] == 0 {
				n.committed[k], n.committedIn[k] = m.log[k], m.term
			}
		}
		n.commits = max(n.commits, committed)
		to(L("leader %d has committed %d entries", i, int(committed)), n)
	}
	r.append(s, i, to)
}

func (r diskRules) append(s raftState, i int, to func(Label, raftState)) {
	m := &s.members[i]
	if m.length == raftLog {
		return
	}
	add := func(kind entryKind, format string) {
		n := s
		n.members[i].log[m.length] = entry{m.term, kind}
		n.members[i].length++
		switch kind {
		case addNewName:
			n.members[3].running = true
		case addOldName:
			n.members[lossy].running = true
		}
		to(L(format, i), n)
	}
	ownCommitted, hasData, removed, added := false, false, false, false
	for k, e := range m.log[:m.length] {
		isCommitted := int8(k) < s.commits && s.committed[k] == e
		ownCommitted = ownCommitted || e.term == m.term && isCommitted
		hasData = hasData || e.term == m.term && e.kind == data
		if e.kind != data && !isCommitted {
			return // one change at a time
		}
		removed = removed || e.kind == removeLossy
		added = added || e.kind == addOldName || e.kind == addNewName
	}
	if !hasData {
		add(data, "leader %d appends a message")
	}
	if !ownCommitted || !s.lost || r.restarts() || i == lossy {
		return
	}
	switch {
	case !removed:
		add(removeLossy, "leader %d appends that member 2 is removed")
	case !added && r.rejoin == rejoinNewName:
		add(addNewName, "leader %d appends that member 3 is added, empty")
	case !added:
		add(addOldName, "leader %d appends that member 2 is added, empty")
	}
}

func diskCases() []Case {
	build := func(name, breaks string, rejoin rejoinRule) Case {
		return caseOf("disk/"+name, breaks, diskModel(diskRules{rejoin}))
	}
	return []Case{
		build("comes back under a new name", "", rejoinNewName),
		build("comes back under its old name", "", rejoinOldName),
		build("C6: starts again empty", "lacks what is committed", restartEmpty),
		build("C6: starts again empty, mute at first", "lacks what is committed", restartMute),
		build("C6: starts again with an older copy", "lacks what is committed", restartShort),
	}
}
