// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// Rules C3, C4, C6 and D1: how a change of members is made, in steps that may end in the middle. A member
// is named in the exchange's record, then started, then in Raft's configuration; it is out of that before
// it is out of the record, and its files go last. What is wrong in between is found by the next who leads,
// or by the node that has the files. A leader that was replaced goes on with what it had begun: what it
// writes into the record depends on what the record says, and what it asks of Raft on that it leads. The
// metadata store may set the record back (Mnesia), nodes go down, are forgotten, wiped, and join again.
//
// Members have names that are not used again: here two a node, a name being free when nothing knows it.
// Raft is taken as it is: its configuration, led by one of those that run, if they are a majority.

type recordRules struct {
	// The bounds.
	failures, setbacks, leaders, removals int8
	want                                  int
	// What a node has, and the record does not name, is put aside without asking the group's leader.
	goesByRecord bool
	// A leader's node has files deleted, or put aside for another member's, without asking who leads now.
	deletesUnasked, takesUnasked bool
	// The leader does not name again what the record lacks.
	noNaming bool
	// What a node has, and the record does not name, is not started where nobody leads.
	awaitsLeader bool
	// What the record lacks is to be named before it is removed, though nobody has it any more.
	namesFirst bool
	// A leader that was replaced has its request to Raft passed on to the present one.
	passedOn bool
	// Files go before Raft's configuration.
	filesFirst bool
	// What is named is started, whether it has files or not.
	startsEmpty bool
}

const recordNodes = 4

var (
	startedEmpty = wrongOf("a member of the group is started without its files")
	filesGone    = wrongOf("files of a member of the group are taken away")
)

type change struct {
	op           memberOp
	id, step     int8
	raft, record uint8 // as they were when it was decided
}

const (
	nameMember   = remove + 1
	unnameMember = remove + 2
)

type recordState struct {
	raft, record, before uint8 // members; before: what the record can be set back to
	files, running       uint8 // members
	cluster, up          uint8 // nodes
	leader               int8  // a member
	changes              [2]change
	failures, setbacks   int8
	leaders, removals    int8 // changes of leader, and removals that an operator may still ask for
	wrong                Wrong
}

func nodeOf(id int8) int8 { return (id-1)%recordNodes + 1 }

func bit(n int8) uint8 { return 1 << (n - 1) }

func (s *recordState) led() bool { return s.leader != 0 && isMajority(s.running, s.raft) }

func recordModel(r recordRules, members uint8) Model[recordState] {
	first := recordState{raft: members, record: members, before: members, files: members, running: members,
		cluster: 0b1111, up: 0b1111, leader: 1, failures: r.failures, setbacks: r.setbacks,
		leaders: r.leaders, removals: r.removals}
	return Model[recordState]{
		Init:  []recordState{first},
		Next:  func(s recordState, to func(Label, recordState)) { r.next(s, to) },
		Check: func(s recordState) string { return s.wrong.String() },
		Goal: func(s recordState) bool {
			if !isMajority(s.running, s.raft) && bits(s.files&s.raft) <= bits(s.raft)/2 {
				return true // nothing of the protocol's mends that
			}
			for id := int8(1); id <= 2*recordNodes; id++ {
				if has(s.files|s.raft, id) && (!has(s.up, nodeOf(id)) || !has(s.cluster, nodeOf(id))) {
					return s.raft == s.record || !has(s.cluster, nodeOf(id)) && !has(s.up, nodeOf(id))
				}
			}
			return s.raft == s.record && s.running == s.raft && s.files == s.raft &&
				(bits(s.raft) >= r.want || bits(s.cluster&s.up) < 3)
		},
		Show: func(s recordState) string {
			return fmt.Sprintf("Raft %08b, record %08b, files %08b, running %08b, nodes of the cluster %04b, up %04b",
				s.raft, s.record, s.files, s.running, s.cluster, s.up)
		},
	}
}

func (r recordRules) next(s recordState, to func(Label, recordState)) {
	r.recordWorld(s, to)
	if has(s.running, max(s.leader, 1)) && s.leader != 0 && s.changes[0].op == noOp {
		if c := r.plan(&s); c.op != noOp {
			n := s
			n.changes[0] = c
			to(L(changeText(c.op)+"the leader decides it of member %d", int(c.id)), n)
		}
	}
	for id := int8(1); id <= 2*recordNodes; id++ {
		if s.removals > 0 && s.led() && s.changes[0].op == noOp && s.raft == s.record && has(s.raft, id) &&
			id != s.leader && s.mayRemove(id) && bits(s.raft) > 2 {
			n := s
			n.removals--
			n.changes[0] = change{remove, id, 0, s.raft, s.record}
			to(Fault("an operator has member %d removed", int(id)), n)
		}
	}
	for i := range s.changes {
		r.goOn(s, i, to)
	}
	for id := int8(1); id <= 2*recordNodes; id++ {
		r.look(s, id, to)
	}
}

func changeText(op memberOp) string {
	return [...]string{"", "add: ", "", "remove: ", "name: ", "unname: "}[op]
}

// lost says whether the node of a member says that it has no files of it.
func (s *recordState) lost(id int8) bool {
	return has(s.up&s.cluster, nodeOf(id)) && !has(s.files, id)
}

func (s *recordState) gone(id int8) bool { return !has(s.cluster, nodeOf(id)) || s.lost(id) }

// plan is rabbit_delay_membership:next/1.
func (r recordRules) plan(s *recordState) change {
	decided := func(op memberOp, id int8) change { return change{op, id, 0, s.raft, s.record} }
	missing, surplus, gone, holding := int8(0), int8(0), int8(0), uint8(0)
	for id := int8(2 * recordNodes); id > 0; id-- {
		switch {
		case has(s.raft&^s.record, id) && (r.namesFirst || !s.gone(id)):
			missing = id
		case has(s.record&^s.raft, id):
			surplus = id
		}
		if has(s.raft, id) && id != s.leader && s.gone(id) {
			gone = id
		}
		if has(s.raft, id) {
			holding |= bit(nodeOf(id))
		}
	}
	switch {
	case missing != 0 && !r.noNaming:
		if s.gone(missing) || !has(s.up, nodeOf(missing)) {
			return change{} // nobody can say what it is called
		}
		return decided(nameMember, missing)
	case missing == 0 && surplus != 0:
		return decided(unnameMember, surplus)
	case gone != 0:
		if s.mayRemove(gone) {
			return decided(remove, gone)
		}
		return change{}
	}
	others := s.cluster & s.up &^ holding
	if bits(s.raft) < r.want && others != 0 && bits(s.raft)+bits(others) >= 3 && s.mayAdd() {
		for id := int8(1); id <= 2*recordNodes; id++ {
			if has(others, nodeOf(id)) && s.isFree(id) {
				return decided(addMember, id)
			}
		}
	}
	return change{}
}

func (s *recordState) isFree(id int8) bool {
	return !has(s.raft|s.record|s.before|s.files, id) && s.changes[0].id != id && s.changes[1].id != id
}

func (s *recordState) mayRemove(id int8) bool { return isMajority(s.running, s.raft&^bit(id)) }

func (s *recordState) mayAdd() bool {
	return bits(s.raft) == 1 || 2*bits(s.running&s.raft) > bits(s.raft)+1
}

// goOn makes the next step of a change, that of the leader or of the one before.
func (r recordRules) goOn(s recordState, i int, to func(Label, recordState)) {
	c := s.changes[i]
	if c.op == noOp {
		return
	}
	n := s
	n.changes[i].step++
	end := func(l Label, n recordState) {
		n.changes[i] = change{}
		to(l, n)
	}
	switch kind := stepsOf(c.op, r.filesFirst)[c.step]; kind {
	case 'n', 'u':
		if s.record != c.record {
			end(L(changeText(c.op)+"the record is another by now, given up"), n)
			return
		}
		n.before = s.record
		if kind == 'n' {
			n.record &^= 0b10001 << (nodeOf(c.id) - 1)
			n.record |= bit(c.id)
		} else {
			n.record &^= bit(c.id)
		}
		n.changes[i].record = n.record
		r.step(n, i, L(changeText(c.op)+"the record is written, member %d", int(c.id)), to)
	case 's':
		if !has(s.up, nodeOf(c.id)) || !has(s.record, c.id) {
			end(L(changeText(c.op)+"member %d cannot be started, given up", int(c.id)), n)
			return
		}
		for other := int8(1); other <= 2*recordNodes; other++ {
			if nodeOf(other) != nodeOf(c.id) || other == c.id || !has(s.files, other) {
				continue
			}
			if !s.isOut(other) && !r.takesUnasked {
				end(L(changeText(c.op)+"member %d cannot be started where member %d is, given up", int(c.id),
					int(other)), s)
				return
			}
			n.takeAway(other)
		}
		n.files |= bit(c.id)
		n.running |= bit(c.id)
		r.step(n, i, L(changeText(c.op)+"member %d is started", int(c.id)), to)
	case 'j', 'l':
		may := s.mayAdd()
		n.raft |= bit(c.id)
		if kind == 'l' {
			may = s.mayRemove(c.id)
			n.raft = s.raft &^ bit(c.id)
		}
		if !s.led() || !r.passedOn && (i != 0 || s.raft != c.raft) || !may ||
			kind == 'l' && c.id == s.leader {
			end(L(changeText(c.op)+"refused, member %d", int(c.id)), s)
			return
		}
		n.changes[i].raft = n.raft
		r.step(n, i, L(changeText(c.op)+"Raft's configuration is changed, member %d", int(c.id)), to)
		if kind == 'j' && s.failures > 0 {
			n.failures--
			n.down(nodeOf(c.id))
			if !isMajority(n.running, n.raft) && bits(s.raft) > 1 {
				n.wrong = majorityGone
			}
			r.step(n, i, Fault(changeText(c.op)+"Raft's configuration is changed, member %d, which goes down",
				int(c.id)), to)
		}
	default:
		if has(s.up&s.cluster, nodeOf(c.id)) && has(s.files, c.id) && !has(s.record, c.id) &&
			(s.isOut(c.id) || r.deletesUnasked || r.filesFirst) {
			n.takeAway(c.id)
		}
		r.step(n, i, L(changeText(c.op)+"the files of member %d are deleted", int(c.id)), to)
	}
}

// The steps: name, unname, start, join, leave, delete files.
func stepsOf(op memberOp, filesFirst bool) string {
	switch op {
	case addMember:
		return "nsj"
	case remove:
		if filesFirst {
			return "udl"
		}
		return "lud"
	case nameMember:
		return "n"
	default:
		return "ud"
	}
}

func (r recordRules) step(n recordState, i int, l Label, to func(Label, recordState)) {
	if int(n.changes[i].step) == len(stepsOf(n.changes[i].op, r.filesFirst)) {
		n.changes[i] = change{}
	}
	to(l, n)
}

// isOut says whether somebody leads, and says that a member is not in the group.
func (s *recordState) isOut(id int8) bool { return s.led() && !has(s.raft, id) }

func (s *recordState) takeAway(id int8) {
	if has(s.raft, id) {
		s.wrong = filesGone
	}
	s.files &^= bit(id)
	s.running &^= bit(id)
	if s.leader == id {
		s.leader = 0
	}
}

// look is what a node does about a member of its own.
func (r recordRules) look(s recordState, id int8, to func(Label, recordState)) {
	if !has(s.up&s.cluster, nodeOf(id)) {
		return
	}
	n := s
	switch {
	case has(s.files, id) && has(s.record, id) && !has(s.running, id):
		n.running |= bit(id)
		to(L("member %d is started again", int(id)), n)
	case has(s.record, id) && !has(s.files, id) && r.startsEmpty && s.changes[0].id != id && s.changes[1].id != id:
		n.files |= bit(id)
		n.running |= bit(id)
		if has(s.raft, id) {
			n.wrong = startedEmpty
		}
		to(L("member %d is started with nothing", int(id)), n)
	case has(s.files, id) && !has(s.record, id) && (r.goesByRecord || s.isOut(id)):
		n.takeAway(id)
		to(L("member %d, which is not named, is put aside", int(id)), n)
	case has(s.files, id) && !has(s.record, id) && s.running&(0b10001<<(nodeOf(id)-1)) == 0 && !s.led() &&
		!r.awaitsLeader:
		n.running |= bit(id)
		to(L("member %d, which is not named, is started, as nobody leads", int(id)), n)
	}
}

func (s *recordState) down(node int8) {
	s.up &^= bit(node)
	s.running &^= 0b10001 << (node - 1)
	if s.leader != 0 && nodeOf(s.leader) == node {
		s.leader = 0
		s.deposed()
	}
}

// deposed: what the leader was at goes on where it still can.
func (s *recordState) deposed() {
	s.changes[1] = s.changes[0]
	s.changes[0] = change{}
}

func (r recordRules) recordWorld(s recordState, to func(Label, recordState)) {
	if s.setbacks > 0 && s.before != s.record {
		n := s
		n.setbacks--
		n.record, n.before = s.before, s.record
		to(Fault("the metadata store sets the record back"), n)
	}
	for id := int8(1); id <= 2*recordNodes; id++ {
		if has(s.raft&s.running, id) && id != s.leader && isMajority(s.running, s.raft) &&
			(s.leader == 0 || s.leaders > 0) {
			n := s
			l := L("member %d leads", int(id))
			if s.leader != 0 {
				n.leaders--
				n.deposed()
				l.fault = true
			}
			n.leader = id
			to(l, n)
		}
	}
	for node := int8(1); node <= recordNodes; node++ {
		n := s
		both := uint8(0b10001) << (node - 1)
		switch {
		case has(s.up, node) && s.failures > 0:
			n.failures--
			n.down(node)
			to(Fault("node %d goes down", int(node)), n)
		case !has(s.up, node) && has(s.cluster, node):
			n.up |= bit(node)
			to(L("node %d is back", int(node)), n)
			n.files &^= both
			to(Fault("node %d is back without its disk", int(node)), n)
			n = s
			n.cluster &^= bit(node)
			to(Fault("node %d is forgotten", int(node)), n)
		case !has(s.up, node):
			n.up |= bit(node)
			n.cluster |= bit(node)
			n.files &^= both
			to(Fault("node %d joins again with nothing", int(node)), n)
		}
	}
}

func recordCases() []Case {
	build := func(name, breaks string, members uint8, change func(*recordRules)) Case {
		r := recordRules{want: 3, failures: 2, setbacks: 1, leaders: 2}
		change(&r)
		return caseOf("record/"+name, breaks, recordModel(r, members))
	}
	const one, three, stuck = 0b0001, 0b0111, "stuck"
	asked := func(r *recordRules) { r.failures, r.removals = 1, 1 }
	return []Case{
		build("rules", "", three, func(*recordRules) {}),
		build("rules, an operator removes one", "", three, asked),
		build("rules, from one", "", one, func(r *recordRules) { r.setbacks = 0 }),
		build("rules, one is wanted", "", one, func(r *recordRules) { r.want = 1 }),
		build("C4: goes by the record alone", "taken away", three, func(r *recordRules) {
			r.goesByRecord = true
		}),
		build("C4: the record is not written again", stuck, three, func(r *recordRules) { r.noNaming = true }),
		build("C4: what nobody has is to be named first", stuck, three, func(r *recordRules) {
			r.namesFirst = true
		}),
		build("C4: another of the node's is put aside unasked", "taken away", three, func(r *recordRules) {
			r.takesUnasked = true
		}),
		build("C6: starts what is named", "without its files", three, func(r *recordRules) {
			r.startsEmpty = true
		}),
		build("D1: an earlier leader's request is passed on", "taken away", three, func(r *recordRules) {
			asked(r)
			r.passedOn, r.deletesUnasked = true, true
		}),
		build("D1: files go first", "taken away", three, func(r *recordRules) {
			asked(r)
			r.filesFirst = true
		}),
		build("rules, the record of two is set back", "", one, func(r *recordRules) {
			r.failures, r.leaders = 1, 1
		}),
		build("C4: the record of two is set back, and the second waits for a leader", stuck, one,
			func(r *recordRules) { r.failures, r.leaders, r.awaitsLeader = 1, 1, true }),
	}
}
