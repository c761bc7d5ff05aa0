// SPDX-License-Identifier: MPL-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// The rows of the rules' table, by rule.
func rules(t *testing.T) map[string]string {
	text, err := os.ReadFile(root + "/docs/internals/raft.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| \*\*([A-D]\d)\*\* .*$`).FindAllStringSubmatch(string(text), -1) {
		rows[row[1]] = row[0]
	}
	return rows
}

func TestEachRuleIsBroken(t *testing.T) {
	inTable := rules(t)
	broken := map[string]bool{}
	for _, c := range allCases() {
		named := regexp.MustCompile(`/([A-D]\d): `).FindStringSubmatch(c.Name)
		if named == nil {
			if c.Breaks != "" && !strings.Contains(c.Name, "/not promised: ") {
				t.Error(c.Name, "breaks, and its name does not say which rule")
			}
			continue
		}
		if c.Breaks == "" {
			t.Error(c.Name, "names a rule, and nothing breaks")
		}
		broken[named[1]] = true
		if inTable[named[1]] == "" && !c.Planned {
			t.Error(named[1], "is not in the table of docs/internals/raft.md")
		}
	}
	for rule := range inTable {
		if !broken[rule] {
			t.Error(rule, "is in the table, and no case breaks it")
		}
	}
}

// What the table names as keeping a rule, and as its test, is there.
func TestWhatTheTableNamesIsThere(t *testing.T) {
	sources := map[string]string{}
	for _, dir := range []string{"erl_src", "tests/erl", "tests/integration", "tests/cluster", "tests/simulation"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && (strings.HasSuffix(path, ".erl") || strings.HasSuffix(path, ".py")) {
				text, unread := os.ReadFile(path)
				name := filepath.Base(path)
				sources[name[:strings.LastIndex(name, ".")]] = string(text)
				err = unread
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	named := regexp.MustCompile("`(\\w+):(\\w+)/\\d`|`(test_\\w+):(test_\\w+)`")
	way := regexp.MustCompile("`WAY=(\\w+)`")
	for rule, row := range rules(t) {
		for _, found := range way.FindAllStringSubmatch(row, -1) {
			if !strings.Contains(sources["simulated_code"], "{"+found[1]+",") {
				t.Error(rule, "names", found[0], "which is no way to break the simulation")
			}
		}
		for _, found := range named.FindAllStringSubmatch(row, -1) {
			module, function, begins := found[1], found[2], "(?m)^"
			if module == "" {
				module, function, begins = found[3], found[4], "(?m)^def "
			}
			if !regexp.MustCompile(begins + function + `\(`).MatchString(sources[module]) {
				t.Error(rule, "names", found[0], "which is not there")
			}
		}
	}
}
