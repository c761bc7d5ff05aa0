// SPDX-License-Identifier: MPL-2.0

package main

// Rule B5, the lease: a dispatcher takes records only while a command of its own has
// been applied that was sent less than so long ago, here within the same unit of time. When it has
// none, it sends a note first.
//
// A leader that was replaced gets nothing applied that it sent after that. So its dispatcher takes
// nothing more when the lease has run out since, whatever it then still finds in its replica, and
// however long its process was paused: what a later dispatcher released long ago it does not release.
// What it had taken before goes out all the same; that is what B2 bounds, and what B5 says.

type leaseRule int

const (
	noLease          leaseRule = iota
	leaseFromSending           // counted from when the command was sent
	leaseFromAnswer            // from when the dispatcher hears that it is applied
	leaseReadAfter             // from when the clock is read after it was sent
)

// A note was sent, and the clock was not read yet.
const unread int8 = -1

type lease struct {
	granted int8 // by a command that was sent then
	note    int8 // when one was sent that is not answered yet
	applied bool
}

var takesLate = wrongOf("an earlier term's dispatcher takes something after its lease has run out")

func (r releaseRules) leaseSteps(s releaseState, t int8, to func(Label, releaseState)) {
	if r.lease == noLease {
		return
	}
	n := s
	l := &n.dispatchers[t].lease
	leads := t == s.term
	switch {
	case l.note == 0 && leads && l.granted != s.now:
		l.note = s.now
		if r.lease == leaseReadAfter {
			l.note = unread
		}
		to(L("dispatcher %d sends a note", int(t)), n)
	case l.note != 0 && !l.applied && leads:
		l.applied = true
		to(L("applied: a note of dispatcher %d", int(t)), n)
	case l.applied && l.note != unread:
		*l = lease{granted: l.note}
		if r.lease == leaseFromAnswer {
			l.granted = s.now
		}
		to(L("dispatcher %d hears that its note is applied", int(t)), n)
	}
	if s.dispatchers[t].lease.note == unread {
		n = s
		n.dispatchers[t].lease.note = s.now
		to(L("dispatcher %d reads the clock", int(t)), n)
	}
}

func (r releaseRules) mayTake(s *releaseState, t int8) bool {
	return r.lease == noLease || s.dispatchers[t].lease.granted == s.now
}

func (r releaseRules) judgeTake(s *releaseState, t int8) {
	if r.endsWithLease && t != s.term && s.now > s.began[t+1] {
		s.wrong = takesLate
	}
}

func leaseCases() []Case {
	build := func(name string, breaks Wrong, change func(*releaseRules)) Case {
		r := releaseRules{records: relRecords, terms: 2, lease: leaseFromSending, twoQueues: true,
			endsWithLease: true}
		change(&r)
		return caseOf("lease/"+name, breaks.String(), releaseModel(r))
	}
	return []Case{
		build("rules", 0, func(*releaseRules) {}),
		build("rules, old replicas catch up, 1 record", 0, func(r *releaseRules) {
			r.records, r.catchesUp = 1, true
		}),
		build("rules, 1 record, 3 terms", 0, func(r *releaseRules) {
			r.records, r.terms, r.twoQueues = 1, 3, false
		}),
		build("B5: none", takesLate, func(r *releaseRules) { r.lease = noLease }),
		build("B5: counted from the answer", takesLate,
			func(r *releaseRules) { r.lease = leaseFromAnswer }),
		build("B5: the clock is read after sending", takesLate,
			func(r *releaseRules) { r.lease = leaseReadAfter }),
		build("not promised: earlier dispatchers keep to a cancel", afterCancel,
			func(r *releaseRules) { r.bindsAll = true }),
	}
}
