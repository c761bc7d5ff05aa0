// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// The release path, rules B1 to B6: each term has a dispatcher beside its leader. It takes due records
// from its own replica, publishes them, and settles through the log what the target queues have
// confirmed. A dispatcher of an earlier term may go on for ever, on a view that is frozen at the change
// of leader: its process was paused, or its leader is cut off and does not know.
//
// Publishing is the moment from which a message cannot be called back.
//
// The lease (lease.go) takes steps away and adds none that publishes: what holds without it holds with
// it, so most cases do without.

// What a settle names beside the record; it does nothing if the record's is another by then.
type settleRule int

const (
	settleNamesDue       settleRule = iota // the due time that it was released for; an earlier one is no other
	settleNamesDueAlone                    // the same, as machine 2 has it: an earlier one is another, too
	settleNamesIndex                       // the index of its last reschedule
	settleNamesNothing                     // nothing
	settleNamesRetryTime                   // when it was to be tried again, if no queue took it
)

type releaseRules struct {
	settle settleRule
	lease  leaseRule
	// A dispatcher starts at the election, on a replica that has not applied all that is committed,
	// and not when a note of its own is applied.
	startsEarly bool
	// A message is settled when it is published, not when its queue has it.
	settlesEarly bool
	// Room is made by the queue's confirm, not by the settle that is applied.
	roomOnConfirm bool
	// Operators' changes go to the log without asking the dispatcher.
	changePastDispatcher bool
	// A change is applied whatever term it was asked for in.
	changeInAnyTerm bool
	// A dispatcher whose node leads again goes on with what it has in its hands although another has
	// led meanwhile.
	keepsBook bool

	// What is looked for beyond what is promised:
	// the promises of a confirmed change bind dispatchers of earlier terms, too;
	bindsAll bool
	// a record comes once more after each reschedule, even one to the time that it was released for;
	againAfterReschedule bool
	// what the lease promises, in the place of one window.
	endsWithLease bool

	// An earlier term's replica may catch up while its dispatcher goes on.
	catchesUp bool
	// Messages go to two queues, of which one may take it before the other does.
	twoQueues bool
	// Publishers release messages by their keys.
	releasesByKey bool
	// The bounds.
	records, terms int
}

const (
	relRecords = 2
	relTerms   = 3
	relChanges = 2
	relWindow  = 1
	lastDue    = 3
)

var (
	takesGone        = wrongOf("the leader's dispatcher takes what is settled or cancelled")
	moreThanInFlight = wrongOf("queues get more from an earlier term's dispatcher than was in flight")
	afterCancel      = wrongOf("published after its cancel was confirmed")
	beforeTime       = wrongOf("published before the time that was confirmed")
	notDelivered     = wrongOf("settled and not delivered")
	notSinceDue      = wrongOf("settled and not delivered at or after its due time")
)

const (
	present int8 = iota
	settled
	cancelled
)

// What a dispatcher has done with a record.
const (
	idle int8 = iota
	taken
	published
	accepted // by its queue; a settle is sent
	done     // the settle is applied
	waiting  // one of its queues has it, and another does not take it now
)

const (
	noChange int8 = iota
	cancel
	toTime // + the time that it is rescheduled to
)

type record struct{ status, due, version int8 }

type dispatcher struct {
	phase [relRecords]int8
	// The due time that it was released for, and what the settle names if that is something else.
	due, names [relRecords]int8
	// One of two queues has it.
	shared [relRecords]bool
	// No queue took it; only where that makes a difference.
	retried [relRecords]bool
	// It was published before it was rescheduled; only where that makes a difference.
	before [relRecords]bool
	// A change of it is under way.
	held [relRecords]bool
	// Its replica, while that is not what is committed.
	lags bool
	view [relRecords]record
	// How many copies queues got of it since the next term began.
	stale int8
	lease lease
}

type releaseState struct {
	now, term   int8
	began       [relTerms + 1]int8
	records     [relRecords]record
	lag         [relRecords]record // of a replica that may lead next; only where it makes a difference
	dispatchers [relTerms + 1]dispatcher
	settles     [relTerms + 1][relRecords]uint8 // sent; a bit for each that they name
	changes     [relTerms + 1][relRecords]int8
	changesLeft int8
	// The latest due time for which a copy that the queues have was released.
	delivered [relRecords]int8
	// The terms in which operators were promised that it is not delivered, or not before it is due.
	cancelledIn, rescheduledIn [relRecords]int8
	wrong                      Wrong
}

func releaseModel(r releaseRules) Model[releaseState] {
	first := releaseState{now: 1, term: 1, changesLeft: relChanges}
	for i := range first.records {
		first.records[i].due = int8(i + 1)
		if i >= r.records {
			first.records[i].status = settled
		}
	}
	first.lag = first.records
	return Model[releaseState]{
		Init:  []releaseState{first},
		Next:  func(s releaseState, to func(Label, releaseState)) { r.next(s, to) },
		Canon: r.canon,
		Check: func(s releaseState) string { return s.wrong.String() },
		Goal: func(s releaseState) bool {
			for _, rec := range s.records {
				if rec.status == present {
					return false
				}
			}
			return true
		},
		Show: func(s releaseState) string {
			text := fmt.Sprintf("term %d, time %d;", s.term, s.now)
			for i, rec := range s.records[:r.records] {
				text += fmt.Sprintf(" r%d %s, due at %d;", i+1,
					[]string{"present", "settled", "cancelled"}[rec.status], rec.due)
			}
			return text
		},
	}
}

func (s *releaseState) viewOf(t int8) *[relRecords]record {
	if s.dispatchers[t].lags {
		return &s.dispatchers[t].view
	}
	return &s.records
}

func (r releaseRules) next(s releaseState, to func(Label, releaseState)) {
	if s.now < lastDue {
		n := s
		n.now++
		to(L("time is %d", int(n.now)), n)
	}
	if int(s.term) < r.terms {
		r.elect(s, to)
	}
	if r.startsEarly && s.lag != s.records {
		n := s
		n.lag = s.records
		to(L("the follower applies what is committed"), n)
	}
	for t := int8(1); t <= s.term; t++ {
		r.replica(s, t, to)
		r.leaseSteps(s, t, to)
		for i := 0; i < r.records; i++ {
			r.dispatch(s, t, i, to)
			r.ask(s, t, i, to)
			r.applyChange(s, t, i, to)
			r.applySettle(s, t, i, to)
		}
	}
	for i := 0; r.releasesByKey && i < r.records; i++ {
		r.releaseByKey(s, i, to)
	}
}

// --------------------------------------------------------------------------------- leadership

func (r releaseRules) elect(s releaseState, to func(Label, releaseState)) {
	n := s
	old := &n.dispatchers[s.term]
	if !old.lags {
		old.lags, old.view = true, s.records
	}
	n.term++
	if r.endsWithLease {
		n.began[n.term] = s.now
	}
	if r.startsEarly && s.lag != s.records {
		n.dispatchers[n.term].lags, n.dispatchers[n.term].view = true, s.lag
	}
	to(Fault("another node leads in term %d", int(n.term)), n)

	n.continueBook(s.term, s.dispatchers[s.term])
	to(Fault("the same node leads in term %d", int(n.term)), n)
	if r.keepsBook && s.term > 1 {
		n = s
		n.term++
		n.continueBook(s.term-1, s.dispatchers[s.term-1])
		to(Fault("the node of term %d leads in term %d", int(s.term-1), int(n.term)), n)
	}
}

// continueBook has the dispatcher of term t go on in the present one. No change that it had under way
// can be applied any more.
func (s *releaseState) continueBook(t int8, d dispatcher) {
	d.lags, d.view, d.stale = false, [relRecords]record{}, 0
	d.held = [relRecords]bool{}
	for i, phase := range d.phase {
		if phase == accepted {
			s.settles[s.term][i] |= 1 << d.names[i]
		}
	}
	s.dispatchers[s.term] = d
	s.dispatchers[t] = dispatcher{lags: true} // no process, which sees nothing
	for i := range s.dispatchers[t].view {
		s.dispatchers[t].view[i].status = settled
	}
}

func (r releaseRules) replica(s releaseState, t int8, to func(Label, releaseState)) {
	d := &s.dispatchers[t]
	leads := t == s.term
	n := s
	if r.catchesUp && !leads && d.view != s.records {
		n.dispatchers[t].view = s.records
		to(Fault("the replica of dispatcher %d catches up, and it is not stopped yet", int(t)), n)
	}
	if leads && d.lags {
		n.dispatchers[t].lags, n.dispatchers[t].view = false, [relRecords]record{}
		to(L("leader %d has applied all that is committed", int(t)), n)
	}
}

// ------------------------------------------------------------------------------------ release

func (r releaseRules) dispatch(s releaseState, t int8, i int, to func(Label, releaseState)) {
	leads := t == s.term
	step := func(format string, n releaseState) {
		l := L(format, int(t), i+1)
		l.fault = !leads
		to(l, n)
	}
	n := s
	d := &n.dispatchers[t]
	switch d.phase[i] {
	case idle:
		rec := s.viewOf(t)[i]
		if rec.status != present || rec.due > s.now || d.held[i] || r.inFlight(d) == relWindow ||
			!r.mayTake(&s, t) {
			return
		}
		d.phase[i], d.due[i], d.names[i] = taken, rec.due, r.named(d.retried[i], rec)
		if leads && s.records[i].status != present {
			n.wrong = takesGone
		}
		r.judgeTake(&n, t)
		step("dispatcher %d takes r%d", n)
	case taken:
		r.publish(&n, t, i)
		step("dispatcher %d publishes r%d", n)
	case published:
		r.notTaken(s, t, i, to)
		d.phase[i], d.shared[i] = accepted, false
		if !d.before[i] {
			n.delivered[i] = max(n.delivered[i], d.due[i])
		}
		n.settles[t][i] |= 1 << d.names[i]
		r.countStale(&n, t, s.dispatchers[t].shared[i])
		step("dispatcher %d: its queues have r%d, settle is sent", n)
	case waiting:
		if r.inFlight(d) == relWindow || !r.mayTake(&s, t) {
			return
		}
		d.phase[i] = taken
		r.judgeTake(&n, t)
		step("dispatcher %d takes r%d again, for the other queue", n)
	}
}

// notTaken: a message that no queue takes is put back, one that some queue has waits for the others.
// Neither is counted in the window any more.
func (r releaseRules) notTaken(s releaseState, t int8, i int, to func(Label, releaseState)) {
	if r.twoQueues {
		n := s
		d := &n.dispatchers[t]
		d.phase[i], d.shared[i] = waiting, true
		r.countStale(&n, t, s.dispatchers[t].shared[i])
		to(Fault("dispatcher %d: one queue has r%d, the other does not take it", int(t), i+1), n)
	}
	if !s.dispatchers[t].shared[i] {
		n := s
		d := &n.dispatchers[t]
		d.phase[i], d.due[i], d.names[i] = idle, 0, 0
		d.retried[i] = r.settle == settleNamesRetryTime
		to(Fault("dispatcher %d: no queue takes r%d, it is put back", int(t), i+1), n)
	}
}

// countStale counts the messages of which queues have got something.
func (r releaseRules) countStale(s *releaseState, t int8, before bool) {
	if t == s.term || before || r.endsWithLease {
		return
	}
	s.dispatchers[t].stale++
	if s.dispatchers[t].stale > relWindow {
		s.wrong = moreThanInFlight
	}
}

func (r releaseRules) inFlight(d *dispatcher) int {
	n := 0
	for _, phase := range d.phase {
		n += truth(phase == taken || phase == published || phase == accepted && !r.roomOnConfirm)
	}
	return n
}

func (r releaseRules) named(retried bool, rec record) int8 {
	switch {
	case r.settle == settleNamesIndex:
		return rec.version
	case r.settle == settleNamesNothing, retried:
		return 0
	}
	return rec.due
}

func (r releaseRules) matches(rec record, named int8) bool {
	return r.settle == settleNamesNothing || r.named(false, rec) == named ||
		r.settle == settleNamesDue && rec.due < named
}

func (r releaseRules) publish(s *releaseState, t int8, i int) {
	d := &s.dispatchers[t]
	d.phase[i] = published
	if r.settlesEarly {
		s.settles[t][i] |= 1 << d.names[i]
	}
	binds := func(term int8) bool { return term > 0 && (r.bindsAll || t >= term) }
	switch {
	case binds(s.cancelledIn[i]):
		s.wrong = afterCancel
	case binds(s.rescheduledIn[i]) && s.now < s.records[i].due:
		s.wrong = beforeTime
	}
}

func (r releaseRules) applySettle(s releaseState, t int8, i int, to func(Label, releaseState)) {
	rec := s.records[i]
	for named := int8(0); named <= lastDue; named++ {
		if s.settles[t][i]&(1<<named) == 0 {
			continue
		}
		n := s
		d := &n.dispatchers[t]
		if t == s.term && d.phase[i] == accepted && d.names[i] == named {
			d.phase[i] = done
		}
		if rec.status == present && r.matches(rec, named) {
			n.records[i].status = settled
			switch {
			case s.delivered[i] == 0:
				n.wrong = notDelivered
			case s.delivered[i] < rec.due:
				n.wrong = notSinceDue
			}
		}
		if n != s {
			to(L("applied: settle by dispatcher %d of r%d (%d)", int(t), i+1, int(named)), n)
		}
	}
}

// ---------------------------------------------------------------------- what operators change

func (r releaseRules) ask(s releaseState, t int8, i int, to func(Label, releaseState)) {
	d := &s.dispatchers[t]
	if s.changesLeft == 0 || s.changes[t][i] != noChange || d.held[i] ||
		t != s.term && !r.changeInAnyTerm { // it would do nothing
		return
	}
	if !r.changePastDispatcher && (d.phase[i] != idle || s.viewOf(t)[i].status != present) {
		return // answered: in flight, or gone
	}
	n := s
	n.changesLeft--
	n.dispatchers[t].held[i] = !r.changePastDispatcher
	n.changes[t][i] = cancel
	to(Fault("dispatcher %d is asked to cancel r%d, appends it", int(t), i+1), n)
	for _, due := range []int8{int8(i + 1), lastDue} {
		n.changes[t][i] = toTime + due
		to(Fault("dispatcher %d is asked to reschedule r%d to %d, appends it", int(t), i+1, int(due)), n)
	}
}

// releaseByKey: a publisher's, in the log like any message, whatever a dispatcher has in its hands. The time of
// its entry is that of the leader who took it in, which may be behind a dispatcher's by now.
func (r releaseRules) releaseByKey(s releaseState, i int, to func(Label, releaseState)) {
	for _, at := range []int8{max(s.now-1, 1), s.now} {
		if s.changesLeft == 0 || s.records[i].status != present || s.records[i].due <= at {
			continue
		}
		n := s
		n.changesLeft--
		n.records[i].due = at
		to(Fault("applied: r%d is released by its key, due at %d", i+1, int(at)), n)
	}
}

func (r releaseRules) applyChange(s releaseState, t int8, i int, to func(Label, releaseState)) {
	change := s.changes[t][i]
	if change == noChange {
		return
	}
	n := s
	n.changes[t][i] = noChange
	n.dispatchers[t].held[i] = false
	rec := &n.records[i]
	switch {
	case t != s.term && !r.changeInAnyTerm, rec.status != present:
		to(L("applied: a change of r%d asked for in term %d does nothing", i+1, int(t)), n)
	case change == cancel:
		rec.status = cancelled
		n.cancelledIn[i] = s.term
		to(L("applied: r%d is cancelled", i+1), n)
	default:
		rec.due = change - toTime
		n.rescheduledIn[i] = s.term
		if r.settle == settleNamesIndex {
			rec.version++
		}
		if r.againAfterReschedule { // what was published before does not count
			n.delivered[i] = 0
			for d := range n.dispatchers {
				n.dispatchers[d].before[i] = n.dispatchers[d].phase[i] == published
			}
		}
		to(L("applied: r%d is due at %d", i+1, int(rec.due)), n)
	}
}

// canon forgets what nothing can depend on any more, so that there are fewer states.
func (r releaseRules) canon(s releaseState) releaseState {
	if s.wrong != 0 {
		return s // nothing comes after it, and it is shown
	}
	for t := int8(1); t <= s.term; t++ {
		d := &s.dispatchers[t]
		if t != s.term && !r.changeInAnyTerm { // its changes will do nothing
			s.changes[t], d.held = [relRecords]int8{}, [relRecords]bool{}
		}
		for i := range d.phase {
			gone := s.records[i].status != present
			ofPresent := t == s.term && d.phase[i] == accepted
			if gone && !ofPresent {
				s.settles[t][i] = 0
			}
			if gone && t == s.term {
				s.changes[t][i], d.held[i] = noChange, false
			}
			if d.phase[i] == done || d.phase[i] == accepted && !ofPresent {
				d.due[i], d.names[i], d.before[i] = 0, 0, false
			}
		}
	}
	for i := range s.records {
		if s.records[i].status == settled {
			s.records[i], s.rescheduledIn[i] = record{status: settled}, 0
		}
		if s.records[i].status != present {
			s.delivered[i], s.records[i].version = 0, 0
		}
	}
	return s
}

func releaseCases() []Case {
	build := func(name string, breaks Wrong, change func(*releaseRules)) Case {
		r := releaseRules{records: relRecords, terms: relTerms}
		change(&r)
		return caseOf("release/"+name, breaks.String(), releaseModel(r))
	}
	stuck := func(name string, change func(*releaseRules)) Case {
		c := build(name, 0, change)
		c.Breaks = "stuck"
		return c
	}
	return []Case{
		build("rules", 0, func(r *releaseRules) {}),
		build("rules, old replicas catch up, 1 record", 0, func(r *releaseRules) {
			r.records, r.catchesUp = 1, true
		}),
		build("rules, old replicas catch up, 2 terms", 0, func(r *releaseRules) {
			r.terms, r.catchesUp = 2, true
		}),
		build("rules, releases by key", 0, func(r *releaseRules) { r.releasesByKey = true }),
		build("B1: starts at the election", takesGone,
			func(r *releaseRules) { r.startsEarly = true }),
		build("B1: goes on with its book after another led", afterCancel,
			func(r *releaseRules) { r.keepsBook = true }),
		build("B2: room on the queue's confirm", moreThanInFlight,
			func(r *releaseRules) { r.roomOnConfirm = true }),
		build("B3: settles what it has published", notDelivered,
			func(r *releaseRules) { r.settlesEarly = true }),
		build("B4: changes past the dispatcher", afterCancel,
			func(r *releaseRules) { r.changePastDispatcher = true }),
		build("B4: changes in any term", afterCancel,
			func(r *releaseRules) { r.changeInAnyTerm = true }),
		build("B6: a settle names the record alone", notSinceDue,
			func(r *releaseRules) { r.settle = settleNamesNothing }),
		stuck("B6: a settle names the time of a retry",
			func(r *releaseRules) { r.settle, r.terms = settleNamesRetryTime, 1 }),
		stuck("B6: a settle does nothing if the record is due earlier by now", func(r *releaseRules) {
			r.settle, r.releasesByKey, r.terms = settleNamesDueAlone, true, 1
		}),
		build("not promised: earlier dispatchers keep to a cancel", afterCancel,
			func(r *releaseRules) { r.bindsAll = true }),
		build("not promised: one window where a queue takes nothing", moreThanInFlight,
			func(r *releaseRules) { r.twoQueues = true }),
		build("not promised: comes again after each reschedule", notDelivered,
			func(r *releaseRules) { r.againAfterReschedule = true }),
		build("an index in its place: comes again", 0, func(r *releaseRules) {
			r.settle, r.againAfterReschedule, r.terms = settleNamesIndex, true, 2
		}),
	}
}
