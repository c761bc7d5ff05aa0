// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// Rules D1 to D3. Members of a group are changed, one at a time, by a reconciler
// beside the leader: it makes a plan from what it sees and carries it out later. That of an earlier
// term may do so at any time, for Ra sends its request on to the present leader. Ra itself refuses
// a change while another is not committed, or before the leader has committed in its term.

type memberRules struct {
	// An added member is a voter at once (Ra before 2.6).
	voterAtOnce bool
	// A plan is carried out in whatever term and configuration, and what it relied on is not looked at
	// again.
	unfenced bool
	// A voter is made even if those that are up would be no majority of the larger group without it.
	noSlack bool
	// Only the number of copies is looked at, to see what else can go wrong.
	copiesOnly bool
	// No step may lead to an even number of voters.
	oddOnly bool
}

const (
	memberNodes = 4
	memberTerms = 5
	wantMembers = 3
)

var (
	majorityGone = wrongOf("a change takes the majority away")
	singleCopy   = wrongOf("changes leave a single copy")
)

type memberOp int8

const (
	noOp memberOp = iota
	addMember
	promote
	remove
)

type configuration struct{ voters, others uint8 }

type plan struct {
	op      memberOp
	node    int8
	version int8
}

type memberState struct {
	now, before   configuration // before: the last that is committed
	version       int8
	pending       bool
	up, forgotten uint8
	caughtUp      uint8
	leader, term  int8
	plans         [memberTerms + 1]plan
	failures      int8
	moves         int8 // how often an operator may still have a member moved to another node
	moving        bool
	wrong         Wrong
}

func membersModel(r memberRules, voters uint8, moves int8) Model[memberState] {
	config := configuration{voters: voters}
	return Model[memberState]{
		Init: []memberState{{now: config, before: config, up: 0b1111, caughtUp: voters, leader: 1,
			term: 1, failures: 2, moves: moves}},
		Next:  func(s memberState, to func(Label, memberState)) { r.next(s, to) },
		Check: func(s memberState) string { return s.wrong.String() },
		Goal: func(s memberState) bool {
			return s.now.voters&s.up == s.now.voters && s.caughtUp == s.now.voters &&
				bits(s.now.voters) == min(wantMembers, memberNodes-bits(s.forgotten)) &&
				!s.pending && s.now.others == 0 ||
				!s.available(s.now) // which only the nodes' return can mend
		},
		Show: func(s memberState) string {
			return fmt.Sprintf("voters %04b others %04b up %04b forgotten %04b", s.now.voters,
				s.now.others, s.up, s.forgotten)
		},
	}
}

func (s *memberState) led() bool { return s.leader != 0 && has(s.up, s.leader) }

func (s *memberState) available(c configuration) bool { return isMajority(s.up, c.voters) }

func (c configuration) after(op memberOp, n int8, voterAtOnce bool) configuration {
	bit := uint8(1) << (n - 1)
	switch {
	case op == remove:
		c.voters &^= bit
		c.others &^= bit
	case op == promote || voterAtOnce:
		c.voters |= bit
		c.others &^= bit
	default:
		c.others |= bit
	}
	return c
}

func (r memberRules) next(s memberState, to func(Label, memberState)) {
	r.world(s, to)
	leads := s.led() && s.available(s.now)
	if s.pending && leads && isMajority(s.up&s.caughtUp, s.now.voters) {
		n := s
		n.pending, n.before = false, s.now
		n.caughtUp &= s.now.voters | s.now.others
		to(L("the change is committed"), n)
	}
	for n := int8(1); n <= memberNodes; n++ {
		members := s.now.voters | s.now.others
		if leads && has(members&s.up, n) && !has(s.caughtUp, n) {
			n1 := s
			n1.caughtUp |= 1 << (n - 1)
			to(L("node %d has caught up", int(n)), n1)
		}
		for _, op := range []memberOp{addMember, promote, remove} {
			if leads && s.plans[s.term].op == noOp && r.sensible(&s, op, n) && s.mayBecome(r, op, n) {
				n1 := s
				n1.plans[s.term] = plan{op, n, s.version}
				to(L(opText(op)+"the reconciler of term %d plans it for node %d", int(s.term), int(n)), n1)
			}
		}
	}
	for t := int8(1); t <= s.term; t++ {
		r.carryOut(s, t, to)
	}
}

func opText(op memberOp) string {
	return [...]string{"", "add: ", "promote: ", "remove: "}[op]
}

// sensible says whether a step brings the group nearer to what is wanted.
func (r memberRules) sensible(s *memberState, op memberOp, n int8) bool {
	members := bits(s.now.voters | s.now.others)
	want := wantMembers
	if s.moving {
		want++
	}
	switch op {
	case addMember:
		return members < want && !has(s.now.voters|s.now.others, n) && has(s.up, n)
	case promote:
		return has(s.now.others&s.caughtUp&s.up, n)
	default:
		gone := has(s.forgotten, n)
		surplus := bits(s.now.voters) > wantMembers && n != s.leader
		return has(s.now.voters|s.now.others, n) && (gone || surplus)
	}
}

// mayBecome says whether those that are up have a majority after a step, whatever the new one does.
func (s *memberState) mayBecome(r memberRules, op memberOp, n int8) bool {
	next := s.now.after(op, n, r.voterAtOnce)
	if r.oddOnly && bits(next.voters)%2 == 0 && next.voters != s.now.voters {
		return false
	}
	up := s.up
	if op != remove && next.voters != s.now.voters && bits(s.now.voters) > 1 && !r.noSlack {
		up &^= 1 << (n - 1)
	}
	return isMajority(up, next.voters)
}

func (r memberRules) carryOut(s memberState, t int8, to func(Label, memberState)) {
	p := s.plans[t]
	if p.op == noOp {
		return
	}
	n := s
	n.plans[t] = plan{}
	next := s.now.after(p.op, p.node, r.voterAtOnce)
	stale := t != s.term || p.version != s.version || !r.sensible(&s, p.op, p.node) ||
		!s.mayBecome(r, p.op, p.node)
	if s.pending || !s.led() || !s.available(s.now) || next == s.now ||
		stale && !r.unfenced {
		to(L(opText(p.op)+"refused for node %d", int(p.node)), n)
		return
	}
	n.now, n.pending = next, true
	n.version++
	if p.op == remove {
		n.moving = false
		if p.node == s.leader {
			n.leader = 0
		}
	}
	r.judge(&n, s.now)
	to(L(opText(p.op)+"appended for node %d, planned in term %d", int(p.node), int(t)), n)
	if has(s.up, p.node) && s.failures > 0 && p.op != remove {
		n.failures--
		n.up &^= 1 << (p.node - 1)
		r.judge(&n, s.now)
		to(Fault(opText(p.op)+"appended for node %d, planned in term %d, and it goes down",
			int(p.node), int(t)), n)
	}
}

// judge looks at a change that has just been appended. The second of two voters is needed at once,
// whatever one does.
func (r memberRules) judge(s *memberState, old configuration) {
	switch {
	case !s.available(s.now) && bits(old.voters) > 1 && !r.copiesOnly:
		s.wrong = majorityGone
	case bits(s.now.voters) < 2 && bits(old.voters) >= 2:
		s.wrong = singleCopy
	}
}

func (r memberRules) world(s memberState, to func(Label, memberState)) {
	if s.moves > 0 {
		n := s
		n.moves--
		n.moving = true
		to(Fault("an operator has a member moved"), n)
	}
	for n := int8(1); n <= memberNodes; n++ {
		bit := uint8(1) << (n - 1)
		n1 := s
		switch {
		case has(s.up, n) && s.failures > 0:
			n1.up &^= bit
			n1.failures--
			to(Fault("node %d goes down", int(n)), n1)
		case !has(s.up, n) && !has(s.forgotten, n):
			n1.up |= bit
			to(L("node %d is back", int(n)), n1)
			n1 = s
			n1.forgotten |= bit
			to(Fault("node %d is forgotten", int(n)), n1)
		}
		needed := !s.led()
		if s.term == memberTerms || s.term > 1 && !needed || n == s.leader ||
			!has(s.up&s.caughtUp, n) {
			continue
		}
		l := L("node %d leads in term %d", int(n), int(s.term+1))
		l.fault = !needed
		for _, c := range []configuration{s.now, s.before} {
			if !has(c.voters, n) || !s.available(c) || c == s.before && c != s.now && !s.pending {
				continue
			}
			n1 = s
			n1.leader, n1.term = n, s.term+1
			if c != s.now {
				n1.now, n1.pending = c, false
				n1.version++
				n1.caughtUp &= c.voters | c.others
			}
			to(l, n1)
		}
	}
}

func memberCases() []Case {
	build := func(name, breaks string, change func(*memberRules)) Case {
		var r memberRules
		change(&r)
		return caseOf("members/"+name, breaks, membersModel(r, 0b0111, 1))
	}
	fromOne := func(name string, r memberRules) Case {
		return caseOf("members/"+name, "", membersModel(r, 0b0001, 0))
	}
	return []Case{
		build("non-voter first", "", func(*memberRules) {}),
		build("voter at once", "", func(r *memberRules) { r.voterAtOnce = true }),
		fromOne("non-voter first, from one", memberRules{}),
		fromOne("voter at once, from one", memberRules{voterAtOnce: true}),
		build("D1: not fenced", "majority away", func(r *memberRules) { r.unfenced = true }),
		build("D1: not fenced, copies", "single copy", func(r *memberRules) {
			r.unfenced, r.copiesOnly = true, true
		}),
		build("D2: no slack", "majority away", func(r *memberRules) { r.noSlack = true }),
		build("D3: odd only", "stuck", func(r *memberRules) { r.oddOnly = true }),
	}
}
