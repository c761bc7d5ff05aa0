// SPDX-License-Identifier: MPL-2.0

// The protocol of the replicated delayed exchange, checked by exhaustive search: README.md.
//
//	model [-junit FILE] [NAME ...]
//
// runs all cases, or those whose names begin so, these with the traces of what breaks. It fails if a
// case does not come out as stated.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Case is a model with one set of rules.
type Case struct {
	Name string
	// Of code that does not exist yet.
	Planned bool
	// A part of what must be found wrong, "" if nothing may be.
	Breaks string
	Run    func(limit int) Result
}

func caseOf[S comparable](name, breaks string, m Model[S]) Case {
	return Case{Name: name, Breaks: breaks, Run: func(limit int) Result { return Explore(m, limit) }}
}

// judge says what is unexpected about how a case came out, "" if nothing is.
func (c Case) judge(r Result) string {
	switch {
	case c.Breaks == "" && r.Wrong != "":
		return "must hold, and breaks: " + r.Wrong
	case c.Breaks == "" && !r.Full:
		return "has more states than are looked at"
	case c.Breaks != "" && r.Wrong == "":
		return "must break with \"" + c.Breaks + "\", and nothing is found wrong"
	case !strings.Contains(r.Wrong, c.Breaks):
		return "must break with \"" + c.Breaks + "\", and breaks with another: " + r.Wrong
	}
	return ""
}

// Outcome is how a case came out.
type Outcome struct {
	Case
	Result
	Unexpected string
}

const (
	workers   = 2
	maxStates = 5_000_000
)

func allCases() []Case {
	cases := append(append(append(publishCases(), releaseCases()...), leaseCases()...), recordCases()...)
	for _, c := range creationCases() {
		// On Mnesia less is built than it takes when groups of two sides of a split meet.
		if strings.Contains(c.Name, "mnesia") && !strings.Contains(c.Name, "complete") {
			c = planned(c)
		}
		cases = append(cases, c)
	}
	return append(append(append(cases, lifeCases()...), diskCases()...), memberCases()...)
}

func planned(c Case) Case {
	c.Planned = true
	return c
}

func main() { os.Exit(run(allCases(), maxStates, os.Args[1:], os.Stdout)) }

// run gives the exit code: 1 if a case came out otherwise than stated, or there is none.
func run(cases []Case, limit int, args []string, w io.Writer) int {
	flags := flag.NewFlagSet("model", flag.ContinueOnError)
	flags.SetOutput(w)
	junit := flags.String("junit", "", "a `file` for the outcome of each case")
	if flags.Parse(args) != nil {
		return 2
	}
	began := time.Now()
	outcomes := runAll(selected(cases, flags.Args()), limit,
		func(o Outcome) { show(w, o, flags.NArg() > 0) })
	unexpected := summary(w, outcomes, time.Since(began))
	if *junit != "" {
		if err := os.WriteFile(*junit, []byte(junitOf(outcomes)), 0o644); err != nil {
			fmt.Fprintln(w, err)
			return 2
		}
	}
	return truth(unexpected > 0 || len(outcomes) == 0)
}

func selected(cases []Case, prefixes []string) []Case {
	var wanted []Case
	for _, c := range cases {
		is := len(prefixes) == 0
		for _, prefix := range prefixes {
			is = is || strings.HasPrefix(c.Name, prefix)
		}
		if is {
			wanted = append(wanted, c)
		}
	}
	return wanted
}

// runAll tells of each case as soon as it and all before it have come out.
func runAll(cases []Case, limit int, tell func(Outcome)) []Outcome {
	outcomes := make([]Outcome, len(cases))
	done := make([]chan bool, len(cases))
	for i := range done {
		done[i] = make(chan bool)
	}
	todo := make(chan int)
	var all sync.WaitGroup
	for w := 0; w < workers; w++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for i := range todo {
				r := cases[i].Run(limit)
				outcomes[i] = Outcome{cases[i], r, cases[i].judge(r)}
				close(done[i])
			}
		}()
	}
	go func() {
		for i := range cases {
			todo <- i
		}
		close(todo)
	}()
	for i := range cases {
		<-done[i]
		tell(outcomes[i])
	}
	all.Wait()
	return outcomes
}

func show(w io.Writer, o Outcome, withTrace bool) {
	mark, verdict := "ok  ", "holds"
	if o.Wrong != "" {
		verdict = "breaks: " + o.Wrong
	}
	if o.Unexpected != "" {
		mark, verdict = "FAIL", o.Unexpected
	}
	if o.Planned {
		verdict += " (not built yet)"
	}
	fmt.Fprintf(w, "%s %-60s %8d states, %2d deep, %5.1f s  %s\n", mark, o.Name, o.States, o.Depth,
		o.Took.Seconds(), verdict)
	if withTrace || o.Unexpected != "" {
		for i, step := range o.Trace {
			fmt.Fprintf(w, "       %2d %s\n", i+1, step)
		}
		if o.End != "" {
			fmt.Fprintf(w, "       => %s\n", o.End)
		}
	}
}

// summary says how many came out otherwise than stated.
func summary(w io.Writer, outcomes []Outcome, took time.Duration) int {
	states, breaking, unbuilt, unexpected := 0, 0, 0, 0
	for _, o := range outcomes {
		states += o.States
		breaking += truth(o.Breaks != "")
		unbuilt += truth(o.Planned)
		unexpected += truth(o.Unexpected != "")
	}
	fmt.Fprintf(w, "%d cases, %d of which must break, %d of what is not built yet; %d states in %.0f s; "+
		"%d unexpected\n", len(outcomes), breaking, unbuilt, states, took.Seconds(), unexpected)
	return unexpected
}
