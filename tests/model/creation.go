// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// Rules C2 to C4 and C7. The first delayed message of an exchange: which group
// becomes its group. Four nodes, groups of three, and a network that may split in two. The exchange
// exists everywhere; what is decided is the record that names its group, of which each node reads
// its own copy.
//
// Mnesia: a write reaches the nodes that this node's database is connected to. With `ignore' the
// databases stay apart when the network is whole again, until the nodes of one side are started
// again and load the other side's copies; autoheal does that by itself, and either side may win. A
// commit that the split falls into may happen on one side only (torn).
// Khepri: a conditional put, linearizable, by a node that reaches a majority.

type storeKind int

const (
	noStore        storeKind = iota // each node starts a group of its own if it has none
	mnesiaAnySide                   // a transaction, on whatever side
	mnesiaMajority                  // the same, on a side with a majority of all nodes
	khepri
)

type memberChoice int

const (
	everyNode memberChoice = iota // all nodes of the cluster, up or not; later it is made smaller
	byList                        // the same three whoever creates
	byCreator                     // three nodes, others for another creator, reachable or not
	byReach                       // as many of three as the creator reaches
)

type creationRules struct {
	store    storeKind
	torn     bool
	autoheal bool
	members  memberChoice
	// Before a group is created, and before it confirms its first message, all nodes that can be
	// reached, a majority at least, are asked for members of another group. One that is found is named
	// in the record instead.
	asks bool
	// They are asked only before it is created.
	asksOnce bool
	// The same, and a group confirms nothing before all of its first members are there.
	opensWhole bool
	// A group that can never confirm anything, for too many of its first members were put aside, is
	// not replaced.
	keepsDead bool
	// A node starts a member although its own copy of the record does not name that group.
	startsUnnamed bool
	// A node holds members of two groups of one exchange.
	holdsTwo bool
	// A member goes into quarantine when its node's copy names another group, even if it may hold what
	// was confirmed.
	quarantineAcked bool
	// The leader of a group that has been formed does not write the record again where it is wrong.
	noReassert bool
	// The record stands, and a member goes into quarantine, if it names another group all of whose members
	// have been there.
	followsComplete bool
	// Nodes 1 and 2 come with a single-member group each, from before there was a record.
	twoOld bool
	// One of them may become the exchange's group, not only be brought into a new one.
	adoptsOld bool
	// Those go on as before instead of taking part.
	oldGoOn bool
	// The bounds.
	nodes, splits int8
}

const (
	maxNodes  = 5
	maxGroups = 7
)

func (r creationRules) all() uint8 { return 1<<r.nodes - 1 }

type creationState struct {
	split    uint8 // one side of the network, 0 if it is whole
	dbSplit  uint8 // the same of the databases
	splits   int8  // how many more may come
	decided  int8  // Khepri's record
	copies   [maxNodes + 1]int8
	groups   int8
	members  [maxGroups + 1]uint8
	holds    [maxNodes + 1]uint8
	acked    [maxNodes + 1]uint8 // groups of which it may hold what was confirmed
	dropped  [maxNodes + 1]uint8 // groups whose member was put aside: it never comes back empty
	accepted uint8               // groups that have confirmed something
	complete uint8               // groups of which all members have been there
}

// side is the set of nodes that node n reaches, itself included.
func (r creationRules) side(n int8, split uint8) uint8 {
	if split == 0 {
		return r.all()
	}
	if has(split, n) {
		return split
	}
	return r.all() &^ split
}

func creationModel(r creationRules) Model[creationState] {
	first := creationState{splits: r.splits}
	if r.twoOld {
		first.groups = 2
		for n := int8(1); n <= 2; n++ {
			first.members[n] = 1 << (n - 1)
			first.holds[n], first.acked[n] = 1<<n, 1<<n
		}
	}
	return Model[creationState]{
		Init: []creationState{first},
		Next: func(s creationState, to func(Label, creationState)) { r.next(s, to) },
		Check: func(s creationState) string {
			if bits(s.accepted) > 1 {
				return "two groups confirm for one exchange"
			}
			return ""
		},
		Goal: func(s creationState) bool {
			if bits(s.accepted) != 1 {
				return false
			}
			for n := int8(1); n <= r.nodes; n++ {
				if s.accepted != 1<<s.copies[n] || s.holds[n]&r.old()&^s.accepted != 0 {
					return false
				}
			}
			return r.formed(&s, s.copies[1], 1)
		},
		Show: func(s creationState) string {
			return fmt.Sprintf("copies %v, members held %v (a bit a group), confirming %b", s.copies[1:r.nodes+1],
				s.holds[1:r.nodes+1], s.accepted)
		},
	}
}

// formed says whether n reaches a majority of the members of group g.
func (r creationRules) formed(s *creationState, g, n int8) bool {
	up := 0
	for m := int8(1); m <= r.nodes; m++ {
		if has(s.members[g], m) && has(r.side(n, s.split), m) && s.holds[m]&(1<<g) != 0 {
			up++
		}
	}
	return up > bits(s.members[g])/2
}

func (r creationRules) next(s creationState, to func(Label, creationState)) {
	for n := int8(1); n <= r.nodes; n++ {
		g := s.copies[n]
		if r.store == noStore || r.oldGoOn {
			for own := int8(1); own <= s.groups && g == 0; own++ {
				if s.holds[n]&(1<<own) != 0 {
					g = own
				}
			}
		}
		if g == 0 || !r.keepsDead && r.dead(&s, n, g) {
			r.create(s, n, to)
		} else if r.formed(&s, g, n) {
			r.confirm(s, n, g, to)
		}
		if g != 0 {
			r.startMembers(s, n, g, to)
		}
		r.tidy(s, n, to)
	}
	r.cutAndHeal(s, to)
}

func (r creationRules) firstMembers(n int8, split uint8) uint8 {
	switch r.members {
	case everyNode:
		return r.all()
	case byCreator:
		return 1<<(n-1) | 1<<(n%r.nodes) | 1<<((n+1)%r.nodes)
	case byList:
		return 0b0111
	default:
		members := uint8(1) << (n - 1)
		for m := int8(1); m <= r.nodes && bits(members) < 3; m++ {
			if has(r.side(n, split), m) {
				members |= 1 << (m - 1)
			}
		}
		return members
	}
}

func (r creationRules) create(s creationState, n int8, to func(Label, creationState)) {
	if r.asks && bits(r.side(n, s.split)) <= int(r.nodes)/2 {
		return
	}
	g, n1 := s.groups+1, s
	found := r.found(&s, n, 0)
	if r.adoptsOld && s.holds[n]&r.old() != 0 { // it proposes what it has
		for g = 1; s.holds[n]&(1<<g) == 0; g++ {
		}
	} else if r.asks && found != 0 {
		for g = 1; found&(1<<g) == 0; g++ {
		}
	} else if g > maxGroups {
		return
	} else {
		n1.groups = g
		n1.members[g] = r.firstMembers(n, s.split)
	}
	db := r.side(n, s.dbSplit)
	write := func(s *creationState, where uint8) {
		for m := int8(1); m <= r.nodes; m++ {
			if has(where, m) {
				s.copies[m] = g
			}
		}
	}
	switch r.store {
	case noStore:
		n1.holds[n] |= 1 << g
		to(L("node %d starts group %d, for it knows of none", int(n), int(g)), n1)
	case khepri:
		if bits(r.side(n, s.split)) <= int(r.nodes)/2 {
			return
		}
		if s.decided != 0 {
			n2 := s
			n2.copies[n] = s.decided
			to(L("node %d: the put finds group %d", int(n), int(s.decided)), n2)
			return
		}
		n1.decided = g
		n1.copies[n] = g // the others' copies come later
		to(L("node %d puts group %d", int(n), int(g)), n1)
	default:
		if r.store == mnesiaMajority && bits(db) <= int(r.nodes)/2 {
			return
		}
		whole := n1
		write(&whole, db)
		to(L("node %d writes group %d", int(n), int(g)), whole)
		if r.torn && s.dbSplit == 0 && s.splits > 0 {
			for half := uint8(1); half < r.all(); half++ {
				torn := n1
				torn.splits--
				torn.split, torn.dbSplit = min(half, r.all()&^half), min(half, r.all()&^half)
				write(&torn, half)
				to(Fault("node %d writes group %d in a split, and only nodes %04b have it", int(n), int(g),
					int(half)), torn)
			}
		}
	}
}

// dead says whether n learns from those it reaches that group g can never confirm anything.
func (r creationRules) dead(s *creationState, n, g int8) bool {
	gone := 0
	for m := int8(1); m <= r.nodes; m++ {
		if has(s.members[g], m) && has(r.side(n, s.split), m) && s.dropped[m]&(1<<g) != 0 {
			gone++
		}
	}
	if r.opensWhole {
		return gone > 0
	}
	return gone >= bits(s.members[g])-bits(s.members[g])/2
}

// found is the set of groups other than g of which n reaches a member, of those that may have
// confirmed something if there are such.
func (r creationRules) found(s *creationState, n, g int8) uint8 {
	held, acked := uint8(0), uint8(0)
	for m := int8(1); m <= r.nodes; m++ {
		if has(r.side(n, s.split), m) {
			held |= s.holds[m] &^ (1 << g) &^ r.old()
			acked |= s.acked[m] &^ (1 << g) &^ r.old()
		}
	}
	for k := int8(1); k <= s.groups && !r.keepsDead; k++ {
		if r.dead(s, n, k) {
			held &^= 1 << k
		}
	}
	if acked != 0 {
		return acked
	}
	return held
}

func (r creationRules) confirm(s creationState, n, g int8, to func(Label, creationState)) {
	if r.asks && s.accepted&(1<<g) == 0 {
		started := 0
		for m := int8(1); m <= r.nodes; m++ {
			if has(s.members[g], m) && s.holds[m]&(1<<g) != 0 {
				started++
			}
		}
		if !r.asksOnce && (bits(r.side(n, s.split)) <= int(r.nodes)/2 || r.found(&s, n, g) != 0) ||
			r.opensWhole && started < bits(s.members[g]) {
			return
		}
	}
	s1 := s
	s1.accepted |= 1 << g
	for m := int8(1); m <= r.nodes; m++ {
		if has(r.side(n, s.split), m) && s.holds[m]&(1<<g) != 0 {
			s1.acked[m] |= 1 << g
		}
	}
	if s1 != s {
		to(L("a message is confirmed on node %d by group %d", int(n), int(g)), s1)
	}
}

// old is the set of groups from before there was a record.
func (r creationRules) old() uint8 {
	if r.twoOld {
		return 0b110
	}
	return 0
}

// startMembers has node n, which knows group g, start its members.
func (r creationRules) startMembers(s creationState, n, g int8, to func(Label, creationState)) {
	for m := int8(1); m <= r.nodes; m++ {
		if !has(s.members[g], m) || !has(r.side(n, s.split), m) || s.holds[m]&(1<<g) != 0 ||
			s.dropped[m]&(1<<g) != 0 ||
			!r.startsUnnamed && r.store != noStore && s.copies[m] != g ||
			!r.holdsTwo && s.holds[m]&^r.old() != 0 {
			continue
		}
		n1 := s
		n1.holds[m] |= 1 << g
		n1.noteComplete(r, g)
		to(L("node %d has node %d start its member of group %d", int(n), int(m), int(g)), n1)
	}
}

// noteComplete is for the cases that look at it: others need no more states for it.
func (s *creationState) noteComplete(r creationRules, g int8) {
	for m := int8(1); m <= r.nodes; m++ {
		if !r.followsComplete || has(s.members[g], m) && s.holds[m]&(1<<g) == 0 {
			return
		}
	}
	s.complete |= 1 << g
}

// tidy is what a node does about members that its copy of the record does not name.
func (r creationRules) tidy(s creationState, n int8, to func(Label, creationState)) {
	for g := int8(1); g <= s.groups; g++ {
		if s.holds[n]&(1<<g) == 0 || s.copies[n] == g {
			continue
		}
		stands := s.complete&(1<<s.copies[n]) != 0
		if s.copies[n] != 0 && (s.acked[n]&(1<<g) == 0 || r.quarantineAcked || stands) {
			n1 := s
			n1.holds[n] &^= 1 << g
			n1.acked[n] &^= 1 << g
			n1.dropped[n] |= 1 << g
			to(L("node %d puts its member of group %d aside, the record names %d", int(n), int(g),
				int(s.copies[n])), n1)
		}
		if r.old()&(1<<g) != 0 { // what it holds is brought into the exchange's group, then it ends
			if s.accepted&(1<<s.copies[n]) != 0 && r.formed(&s, s.copies[n], n) {
				n1 := s
				n1.holds[n] &^= 1 << g
				n1.acked[n] &^= 1 << g
				to(L("node %d has brought group %d's messages into group %d", int(n), int(g),
					int(s.copies[n])), n1)
			}
			continue
		}
		if !r.noReassert && s.acked[n]&(1<<g) != 0 && r.formed(&s, g, n) && r.store != khepri && !stands {
			n1 := s
			for m := int8(1); m <= r.nodes; m++ {
				if has(r.side(n, s.dbSplit), m) {
					n1.copies[m] = g
				}
			}
			to(L("node %d, where group %d is led, writes its record again", int(n), int(g)), n1)
		}
	}
}

func (r creationRules) cutAndHeal(s creationState, to func(Label, creationState)) {
	if r.store == khepri && s.decided != 0 {
		for n := int8(1); n <= r.nodes; n++ {
			if bits(r.side(n, s.split)) > int(r.nodes)/2 && s.copies[n] != s.decided {
				n1 := s
				n1.copies[n] = s.decided
				to(L("node %d's copy is up to date", int(n)), n1)
			}
		}
	}
	if s.split == 0 && s.dbSplit == 0 && s.splits > 0 {
		for half := uint8(1); half <= r.all()/2; half++ {
			n1 := s
			n1.splits--
			n1.split, n1.dbSplit = half, half
			to(Fault("the network splits, nodes %04b on one side", int(half)), n1)
		}
	}
	if s.split != 0 && !r.autoheal {
		n1 := s
		n1.split = 0
		if r.store == khepri {
			n1.dbSplit = 0
		}
		to(L("the network is whole again"), n1)
	}
	if r.store == khepri || s.dbSplit == 0 || s.split != 0 && !r.autoheal {
		return
	}
	for _, winner := range []uint8{s.dbSplit, r.all() &^ s.dbSplit} {
		n1 := s
		n1.split, n1.dbSplit = 0, 0
		source := int8(1)
		for !has(winner, source) {
			source++
		}
		for m := int8(1); m <= r.nodes; m++ {
			if !has(winner, m) {
				n1.copies[m] = s.copies[source]
			}
		}
		to(L("nodes %04b are started again with the others' copies", int(r.all()&^winner)), n1)
	}
}

func creationCases() []Case {
	build := func(name, breaks string, r creationRules) Case {
		if r.nodes == 0 {
			r.nodes = 4
		}
		if r.splits == 0 {
			r.splits = 2
		}
		return caseOf("creation/"+name, breaks, creationModel(r))
	}
	const two, stuck = "two groups confirm", "stuck"
	mnesia := func(change func(*creationRules)) creationRules {
		r := creationRules{store: mnesiaMajority, torn: true, autoheal: true, members: byCreator,
			asks: true}
		change(&r)
		return r
	}
	return []Case{
		build("khepri", "", creationRules{store: khepri, members: byReach}),
		build("khepri, two groups from 0.1", "",
			creationRules{store: khepri, members: byReach, twoOld: true, adoptsOld: true}),
		build("mnesia, asks, two groups from 0.1", "", mnesia(func(r *creationRules) {
			r.twoOld = true
		})),
		build("C7: mnesia, adopts one from 0.1", two, mnesia(func(r *creationRules) {
			r.twoOld, r.adoptsOld = true, true
		})),
		build("mnesia, asks, autoheal", "", mnesia(func(*creationRules) {})),
		build("mnesia, asks, ignore", "", mnesia(func(r *creationRules) { r.autoheal = false })),
		build("mnesia, asks, by reach", "", mnesia(func(r *creationRules) { r.members = byReach })),
		build("mnesia, asks, opens whole, 5 nodes", "", mnesia(func(r *creationRules) {
			r.nodes, r.opensWhole, r.splits = 5, true, 3
		})),
		build("C2: mnesia, opens before all are there, 5 nodes", two, mnesia(func(r *creationRules) { r.nodes = 5 })),
		build("C2: mnesia, dead group stays, 5 nodes", stuck, mnesia(func(r *creationRules) {
			r.nodes, r.opensWhole, r.splits, r.keepsDead = 5, true, 3, true
		})),
		build("mnesia, every node", "",
			mnesia(func(r *creationRules) { r.asks, r.members = false, everyNode })),
		build("mnesia, every node, ignore", "", mnesia(func(r *creationRules) {
			r.asks, r.members, r.autoheal = false, everyNode, false
		})),
		build("mnesia, by list", "",
			mnesia(func(r *creationRules) { r.asks, r.members = false, byList })),
		build("C2: mnesia, does not ask", two, mnesia(func(r *creationRules) {
			r.asks, r.torn = false, false
		})),
		build("C2: mnesia, does not ask, torn", two, mnesia(func(r *creationRules) { r.asks = false })),
		build("C2: mnesia, any side, by reach", two, mnesia(func(r *creationRules) {
			r.store, r.asks, r.members = mnesiaAnySide, false, byReach
		})),
		build("C2: no record", two, creationRules{store: noStore, members: byReach}),
		build("C3: mnesia, starts what is not named", stuck, mnesia(func(r *creationRules) {
			r.autoheal, r.startsUnnamed, r.keepsDead = false, true, true
		})),
		build("C3: mnesia, holds two", two, mnesia(func(r *creationRules) {
			r.asks, r.members, r.holdsTwo = false, everyNode, true
		})),
		build("C4: mnesia, quarantine by name", two,
			mnesia(func(r *creationRules) { r.quarantineAcked = true })),
		build("C4: mnesia, not written again", stuck,
			mnesia(func(r *creationRules) { r.noReassert = true })),
		build("mnesia, asks once, opens whole", "", mnesia(func(r *creationRules) {
			r.members, r.opensWhole, r.asksOnce = byReach, true, true
		})),
		build("mnesia, a complete group's record stands", "", mnesia(func(r *creationRules) {
			r.members, r.opensWhole, r.asksOnce, r.followsComplete = byReach, true, true, true
		})),
		build("mnesia, a complete group's record stands, ignore", "", mnesia(func(r *creationRules) {
			r.members, r.opensWhole, r.asksOnce, r.followsComplete, r.autoheal = byReach, true, true, true, false
		})),
		build("C4: mnesia, a complete group's is put aside", two, mnesia(func(r *creationRules) {
			r.members, r.opensWhole, r.asksOnce, r.quarantineAcked, r.noReassert = byReach, true, true, true, true
		})),
		build("C7: two groups from 0.1 go on", two,
			creationRules{store: khepri, twoOld: true, oldGoOn: true}),
	}
}
