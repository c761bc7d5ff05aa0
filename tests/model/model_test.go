// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// A counter that goes up by steps of the protocol to top, and by a fault beyond it.
type counter struct{ n, m int8 }

func counterModel(top, bad int8, goal func(counter) bool) Model[counter] {
	return Model[counter]{
		Init: []counter{{}},
		Next: func(s counter, to func(Label, counter)) {
			if s.n < top {
				to(L("to %d", int(s.n+1)), counter{s.n + 1, s.m})
			}
			if s.n+2 <= top {
				to(L("jumps to %d", int(s.n+2)), counter{s.n + 2, s.m})
			}
			if s.n == top {
				to(Fault("breaks at %d", int(s.n)), counter{s.n + 1, s.m})
			}
		},
		Check: func(s counter) string {
			if s.n == bad {
				return "the counter is bad"
			}
			return ""
		},
		Goal: goal,
		Show: func(s counter) string { return "shown" },
	}
}

func TestTraceIsAShortestOne(t *testing.T) {
	r := Explore(counterModel(4, 4, nil), 100)
	if r.Wrong != "the counter is bad" || r.End != "shown" ||
		!reflect.DeepEqual(r.Trace, []string{"jumps to 2", "jumps to 4"}) {
		t.Error(r)
	}
}

func TestAllStatesAreLookedAt(t *testing.T) {
	if r := Explore(counterModel(4, 9, nil), 100); !r.Full || r.States != 6 || r.Wrong != "" {
		t.Error(r)
	}
	if r := Explore(counterModel(100, 101, nil), 10); r.Full || r.Wrong != "" {
		t.Error(r)
	}
}

func TestWhatFaultsAloneLeadOutOfIsStuck(t *testing.T) {
	beyond := func(s counter) bool { return s.n == 5 }
	if r := Explore(counterModel(4, 9, beyond), 100); !strings.HasPrefix(r.Wrong, "stuck") ||
		r.Trace[len(r.Trace)-1] != "jumps to 4" {
		t.Error(r)
	}
	anywhere := func(s counter) bool { return s.n >= 4 }
	if r := Explore(counterModel(4, 9, anywhere), 100); r.Wrong != "" {
		t.Error(r)
	}
}

func TestStatesAreKeptOnce(t *testing.T) {
	states := NewStates[counter]()
	for round := 0; round < 2; round++ {
		for n := 0; n < 200; n++ {
			for m := 0; m < 200; m++ {
				i, isNew := states.Add(counter{int8(n - 100), int8(m - 100)})
				if int(i) != 200*n+m || isNew != (round == 0) {
					t.Fatal(round, n, m, i, isNew)
				}
			}
		}
	}
}

func TestStatesAreOfBytesAlone(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a state with a string was taken")
		}
	}()
	NewStates[struct{ text string }]()
}

// What a case must come out as, and does not.
func wrongCases() []Case {
	return []Case{
		caseOf("a/holds and does", "", counterModel(4, 9, nil)),
		caseOf("a/breaks and does", "is bad", counterModel(4, 3, nil)),
		caseOf("b/holds and breaks", "", counterModel(4, 3, nil)),
		caseOf("b/breaks and holds", "is bad", counterModel(4, 9, nil)),
		caseOf("b/breaks with another", "is good", counterModel(4, 3, nil)),
		caseOf("b/holds and is not finished", "", counterModel(100, 101, nil)),
		caseOf("b/breaks and is not finished", "is bad", counterModel(100, 90, nil)),
	}
}

func TestWhatComesOutOtherwiseThanStatedIsReported(t *testing.T) {
	file := filepath.Join(t.TempDir(), "model.xml")
	var said bytes.Buffer
	if code := run(wrongCases(), 10, []string{"-junit", file}, &said); code != 1 {
		t.Error(code)
	}
	if n := strings.Count(said.String(), "FAIL b/"); n != 5 {
		t.Error(said.String())
	}
	if !strings.Contains(said.String(), "5 unexpected") || !strings.Contains(said.String(), "1 to 1") {
		t.Error(said.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Cases []struct {
			Name    string `xml:"name,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil || len(suites.Cases) != 7 {
		t.Fatal(err, string(text))
	}
	for _, c := range suites.Cases {
		if (c.Failure != nil) != strings.HasPrefix(c.Name, "b/") {
			t.Error(c.Name)
		}
	}
}

func TestExitCodes(t *testing.T) {
	var said bytes.Buffer
	for args, code := range map[string]int{"a/": 0, "b/": 1, "a/breaks": 0, "nothing is named so": 1,
		"-no-such-flag": 2} {
		if got := run(wrongCases(), 10, []string{args}, &said); got != code {
			t.Error(args, got)
		}
	}
	if run(wrongCases(), 10, []string{"-junit", t.TempDir(), "a/"}, &said) != 2 {
		t.Error("nothing was said of a file that cannot be written")
	}
}

func TestCasesHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range allCases() {
		if seen[c.Name] || strings.ContainsAny(c.Name, "\"") {
			t.Error(c.Name)
		}
		seen[c.Name] = true
	}
}

func TestACaseComesOutTheSameAgain(t *testing.T) {
	r := releaseRules{records: 1, terms: 2, bindsAll: true}
	first, second := Explore(releaseModel(r), maxStates), Explore(releaseModel(r), maxStates)
	first.Took, second.Took = 0, 0
	if first.Wrong == "" || !reflect.DeepEqual(first, second) {
		t.Error(first, second)
	}
}

// What canon forgets of a state makes no difference to what is found.
func TestWhatIsForgottenMakesNoDifference(t *testing.T) {
	for _, change := range []func(*releaseRules){
		func(*releaseRules) {},
		func(r *releaseRules) { r.startsEarly = true },
		func(r *releaseRules) { r.roomOnConfirm = true },
		func(r *releaseRules) { r.settlesEarly = true },
		func(r *releaseRules) { r.changeInAnyTerm = true },
		func(r *releaseRules) { r.changePastDispatcher = true },
		func(r *releaseRules) { r.settle = settleNamesNothing },
		func(r *releaseRules) { r.againAfterReschedule = true },
		func(r *releaseRules) { r.twoQueues, r.catchesUp = true, true },
		func(r *releaseRules) { r.bindsAll = true },
	} {
		r := releaseRules{records: 1, terms: 2}
		change(&r)
		m := releaseModel(r)
		with := Explore(m, maxStates)
		m.Canon = nil
		without := Explore(m, maxStates)
		if !with.Full && with.Wrong == "" || with.Wrong != without.Wrong ||
			len(with.Trace) != len(without.Trace) ||
			with.Full && with.States >= without.States {
			t.Errorf("%+v: %d states, %s; without: %d, %s", r, with.States, with.Wrong,
				without.States, without.Wrong)
		}
	}
}
