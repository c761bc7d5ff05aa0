// SPDX-License-Identifier: MPL-2.0

package main

import "fmt"

// The publish path, rules A1 to A7: one node's delay queue process sends batches (here of one message
// each) to the log under a session and a number, is answered, and answers its publishers.
//
// Ra and the network are one adversary: what was once sent is applied at any later time, in any
// order, any number of times, or never; an answer arrives at any later time or never. That covers
// pipelines of which a part went to an old leader, entries that survive in its log and come back,
// resends, and copies delayed for as long as one likes.

type acceptRule int

const (
	acceptNext   acceptRule = iota // number = last + 1; beyond it is a gap, up to it was seen
	acceptNewer                    // any number > last
	acceptUnseen                   // any number not seen, in a window
	acceptAll                      // no table of sessions
)

// What becomes of a batch that has waited too long for its answer. Its publishers are told no.
type nackRule int

const (
	// An empty batch of the same number is sent instead; or the batch is sent on until it is answered,
	// if it has messages that nobody can be told of.
	nackFillOrKeep  nackRule = iota
	nackLeaveGap             // it is forgotten
	nackReuseNumber          // its number is given to the next batch
)

// An import is a client whose session outlives its process: a file says which messages went under
// which number. One that goes on after a crash asks through the log how far the session has come.
type importRule int

const (
	noImport           importRule = iota
	importGoesOn                  // what is not in yet is sent again, the same under the same number
	importOtherSession            // what is not in yet is sent in another session
	importCutsAnew                // the numbers that are not used yet are given to other batches
)

type refusalRule int

const (
	refuseAndAdvance refusalRule = iota // takes its number; a copy is judged again
	refuseAdvanceOk                     // takes its number; a copy is answered ok, as any that was seen
	refuseStay                          // does not take its number
)

type publishRules struct {
	accept acceptRule
	nack   nackRule
	// A session is named by the client and made by its batch 1, not by an entry of its own whose
	// index is its name.
	namedByClient bool
	// An import's session is kept for good.
	importing importRule
	// What was under way in a lost session is sent again in the next.
	resendInNext bool
	// Answers carry the number only.
	answerByNumber bool
	refusal        refusalRule
	// The store refuses this message, by its size, say; 0 none.
	bad int8
	// How many there may be of the world's troubles.
	faults int8
}

const (
	pubMessages = 4
	pubSessions = 7
	pubAttempts = 5
	filler      = 7 // the content of an empty batch
)

const (
	unsent int8 = iota
	pending
	confirmed
	nacked
)

type publishState struct {
	faults int8 // that may still come
	// The client: how often it opened a session, its name once known, the next number.
	attempt, session, next, toSend int8
	// Answers to earlier sessions than this go to a process that has died.
	born           int8
	status, number [pubMessages + 1]int8
	// Messages that are sent on although they were nacked.
	keeps uint8
	// The network: opens by attempt; batches by session and number, a bit for each content.
	sentOpens uint8
	sent      [pubSessions + 1][pubMessages + 1]uint8
	// Answers: sessions by attempt, numbers by session.
	opened               [pubAttempts + 1]uint8
	ok, unknown, refused [pubSessions + 1]uint8
	// The machine.
	sessions, openedBy int8
	known              uint8
	last               [pubSessions + 1]int8
	seen               [pubSessions + 1]uint8
	log                [5]int8
	logLen             int8
	newest             [pubSessions + 1]int8
	disorder           bool
}

func publishModel(r publishRules) Model[publishState] {
	first := publishState{toSend: 1, faults: r.faults}
	r.openNext(&first)
	return Model[publishState]{
		Init:  []publishState{first},
		Next:  func(s publishState, to func(Label, publishState)) { r.next(s, to) },
		Check: checkPublish,
		Goal: func(s publishState) bool {
			for m := 1; m <= pubMessages; m++ {
				if s.status[m] != confirmed && s.status[m] != nacked {
					return false
				}
			}
			return true
		},
		Show: func(s publishState) string {
			names := []string{"unsent", "pending", "confirmed", "nacked"}
			text := fmt.Sprintf("log %v;", s.log[:s.logLen])
			for m := 1; m <= pubMessages; m++ {
				text += fmt.Sprintf(" m%d %s", m, names[s.status[m]])
			}
			return text
		},
	}
}

func checkPublish(s publishState) string {
	if s.disorder {
		return "order within a session is not kept"
	}
	var stored [pubMessages + 1]int
	for _, m := range s.log[:s.logLen] {
		stored[m]++
	}
	for m := 1; m <= pubMessages; m++ {
		switch {
		case s.status[m] == confirmed && stored[m] == 0:
			return "confirmed and not stored"
		case stored[m] > 1 && s.status[m] == confirmed:
			return "confirmed and stored twice"
		case stored[m] > 1:
			return "stored twice"
		}
	}
	return ""
}

// openNext begins another session at the client.
func (r publishRules) openNext(s *publishState) {
	s.attempt++
	s.session, s.next = 0, 1
	if r.namedByClient {
		s.session = s.attempt
		r.sendPending(s)
	} else {
		s.sentOpens |= 1 << s.attempt
	}
}

func (r publishRules) sendPending(s *publishState) {
	for m := int8(1); m <= pubMessages; m++ {
		if s.status[m] == pending {
			s.send(m)
		}
	}
}

func (s *publishState) send(m int8) {
	s.status[m], s.number[m] = pending, s.next
	s.sent[s.session][s.next] |= 1 << m
	s.next++
}

func (s *publishState) nackPending() {
	for m := range s.status {
		if s.status[m] == pending {
			s.status[m] = nacked
		}
	}
}

func (s *publishState) oldestPending() int8 {
	for m := int8(1); m <= pubMessages; m++ {
		if s.status[m] == pending {
			return m
		}
	}
	return 0
}

func (r publishRules) loseSession(s *publishState) {
	if !r.resendInNext {
		s.nackPending()
	}
	r.openNext(s)
}

func (r publishRules) next(s publishState, to func(Label, publishState)) {
	if s.session > 0 && s.toSend <= pubMessages && s.next <= pubMessages {
		n := s
		n.send(n.toSend)
		n.toSend++
		to(L("client sends m%d as session %d number %d", int(s.toSend), int(s.session), int(s.next)), n)
	}
	r.applyOpens(s, to)
	for session := int8(1); session <= pubSessions; session++ {
		for number := int8(1); number <= pubMessages; number++ {
			for content := int8(1); content <= filler; content++ {
				if s.sent[session][number]&(1<<content) != 0 {
					r.applyBatch(s, session, number, content, to)
				}
			}
		}
	}
	r.answers(s, to)
	if s.faults > 0 {
		r.trouble(s, to)
	}
}

func (r publishRules) applyOpens(s publishState, to func(Label, publishState)) {
	for a := int8(1); a <= s.attempt; a++ {
		if s.sentOpens&(1<<a) == 0 || s.sessions == pubSessions {
			continue
		}
		n := s
		if s.openedBy == a && s.known != 0 {
			continue // a copy of the open that made the present session: answered as that was
		}
		n.sessions++
		n.openedBy = a
		n.known = 1 << n.sessions // the node's earlier session is superseded
		n.opened[a] |= 1 << n.sessions
		if a == s.attempt && s.opened[a] == 0 {
			to(L("applied: open %d makes session %d", int(a), int(n.sessions)), n)
		} else if s.faults > 0 {
			n.faults--
			to(Fault("applied late or again: open %d makes session %d", int(a), int(n.sessions)), n)
		}
	}
}

func (r publishRules) applyBatch(s publishState, session, number, content int8,
	to func(Label, publishState)) {
	n := s
	bit := uint8(1) << number
	judge := func() bool { return content != r.bad }
	store := func() {
		n.ok[session] |= bit
		if content == filler {
			return
		}
		if n.logLen < int8(len(n.log)) {
			n.log[n.logLen] = content
			n.logLen++
		}
		n.disorder = n.disorder || content < n.newest[session]
		n.newest[session] = content
	}
	isKnown := s.known&(1<<session) != 0
	if !isKnown && r.namedByClient && number == 1 {
		n.known |= 1 << session
		n.last[session], n.seen[session] = 0, 0
		isKnown = true
	}
	last := n.last[session]
	switch {
	case r.accept == acceptAll:
		store()
	case !isKnown:
		n.unknown[session] |= bit
	case r.accept == acceptUnseen:
		if n.seen[session]&bit != 0 {
			n.ok[session] |= bit
		} else {
			n.seen[session] |= bit
			store()
		}
	case number <= last:
		if !judge() && r.refusal == refuseAndAdvance {
			n.refused[session] |= bit
		} else {
			n.ok[session] |= bit
		}
	case number > last+1 && r.accept == acceptNext:
		// a gap: the client sends again, in order
	case !judge():
		n.refused[session] |= bit
		if r.refusal != refuseStay {
			n.last[session] = number
		}
	default:
		n.last[session] = number
		store()
	}
	if n == s {
		return
	}
	// Only what the client still sends counts as a step that will happen.
	sends := session == s.session && (content == filler || s.number[content] == number &&
		(s.status[content] == pending || s.keeps&(1<<content) != 0))
	text := "applied: session %d number %d with m%d"
	if content == filler {
		text = "applied: session %d number %d, empty (%d)"
	}
	l := L(text, int(session), int(number), int(content))
	l.fault = !sends
	to(l, n)
}

func (r publishRules) answers(s publishState, to func(Label, publishState)) {
	if s.session == 0 {
		for session := int8(1); session <= pubSessions; session++ {
			if s.opened[s.attempt]&(1<<session) != 0 {
				n := s
				n.session = session
				r.sendPending(&n)
				to(L("client learns that it has session %d", int(session)), n)
			}
		}
	}
	for session := max(1, s.born); session <= pubSessions; session++ {
		ours := session == s.session
		for m := int8(1); m <= pubMessages; m++ {
			bit := uint8(1) << s.number[m]
			if s.status[m] != pending || s.number[m] == 0 || !ours && !r.answerByNumber {
				continue
			}
			if s.ok[session]&bit != 0 {
				n := s
				n.status[m] = confirmed
				to(L("client confirms m%d: ok to session %d number %d", int(m), int(session),
					int(s.number[m])), n)
			}
			if s.refused[session]&bit != 0 {
				n := s
				n.status[m] = nacked
				to(L("client nacks m%d: refused", int(m)), n)
			}
		}
		// Of a session that its batch 1 makes, that may just not have come yet.
		firstPending := r.namedByClient && s.sentPending(1)
		if ours && s.unknown[session] != 0 && !firstPending && s.attempt < pubAttempts {
			n := s
			r.loseSession(&n)
			to(L("client learns that session %d is unknown", int(session)), n)
		}
	}
}

func (s *publishState) sentPending(number int8) bool {
	for m := 1; m <= pubMessages; m++ {
		if s.status[m] == pending && s.number[m] == number {
			return true
		}
	}
	return false
}

func (r publishRules) trouble(s publishState, to func(Label, publishState)) {
	s.faults--
	if r.importing != noImport {
		r.importAgain(s, to)
	} else if s.attempt < pubAttempts {
		n := s
		n.nackPending() // their connections are gone: unknown to the publisher
		n.born = n.sessions + 1
		r.openNext(&n)
		if r.namedByClient {
			n.born = n.session
		}
		to(Fault("the client's node restarts"), n)
	}
	for session := int8(1); session <= pubSessions; session++ {
		if s.known&(1<<session) != 0 && r.importing == noImport {
			n := s
			n.known &^= 1 << session
			to(Fault("the machine forgets session %d", int(session)), n)
		}
	}
	if m := s.oldestPending(); m != 0 && s.session != 0 && r.importing == noImport {
		r.waitedTooLong(s, m, to)
	}
}

func (r publishRules) waitedTooLong(s publishState, m int8, to func(Label, publishState)) {
	n := s
	n.status[m] = nacked
	switch r.nack {
	case nackFillOrKeep:
		kept := n
		kept.keeps |= 1 << m
		to(Fault("m%d has waited too long: nack, and it is sent on", int(m)), kept)
		n.sent[s.session][s.number[m]] |= 1 << filler
		to(Fault("m%d has waited too long: nack, and its number is filled", int(m)), n)
	case nackLeaveGap:
		to(Fault("m%d has waited too long: nack, and it is forgotten", int(m)), n)
	case nackReuseNumber:
		n.next = min(n.next, s.number[m])
		to(Fault("m%d has waited too long: nack, and its number is free again", int(m)), n)
	}
}

// importAgain: an import's process ends, and another reads the file and asks through the log how far
// the session has come.
func (r publishRules) importAgain(s publishState, to func(Label, publishState)) {
	if s.session == 0 || s.attempt == pubAttempts {
		return
	}
	last := s.last[s.session]
	isIn := func(m int8) bool { return s.number[m] <= last }
	n := s
	for m := int8(1); m <= pubMessages; m++ {
		if s.status[m] == pending && isIn(m) {
			n.status[m] = confirmed
		}
	}
	switch r.importing {
	case importOtherSession:
		if n.oldestPending() != 0 {
			r.openNext(&n)
		}
	case importCutsAnew:
		n.next = last + 1
		for m := int8(pubMessages); m >= 1; m-- {
			if n.status[m] == pending {
				n.send(m)
			}
		}
	}
	to(Fault("the import ends and goes on: session %d has come to %d", int(s.session), int(last)), n)
}

func publishCases() []Case {
	build := func(name, breaks string, r publishRules) Case {
		if r.faults == 0 {
			r.faults = 3
		}
		return caseOf("publish/"+name, breaks, publishModel(r))
	}
	const lost, twice, stuck = "confirmed and not stored", "stored twice", "stuck"
	return []Case{
		build("rules", "", publishRules{}),
		build("rules, a batch is refused", "", publishRules{bad: 2}),
		build("rules, an import", "", publishRules{importing: importGoesOn, namedByClient: true}),
		build("A1: any newer number", lost, publishRules{accept: acceptNewer}),
		build("A1: any unseen number", "order", publishRules{accept: acceptUnseen}),
		build("A1: no table", twice, publishRules{accept: acceptAll}),
		build("A2: a session is made by its batch 1", twice, publishRules{namedByClient: true}),
		build("A3: a lost session's batches go on in the next", twice,
			publishRules{resendInNext: true}),
		build("A4: answers by number alone", lost, publishRules{answerByNumber: true}),
		build("A5: a nack leaves a gap", stuck, publishRules{nack: nackLeaveGap, faults: 1}),
		build("A5: a nack frees the number", lost, publishRules{nack: nackReuseNumber}),
		build("A6: a refused batch keeps its number", stuck,
			publishRules{bad: 2, refusal: refuseStay, faults: 1}),
		build("A6: a copy of a refused batch is ok", lost,
			publishRules{bad: 2, refusal: refuseAdvanceOk}),
		build("A7: an import goes on in another session", twice,
			publishRules{importing: importOtherSession, namedByClient: true}),
		build("A7: an import cuts its batches anew", twice,
			publishRules{importing: importCutsAnew, namedByClient: true}),
	}
}
