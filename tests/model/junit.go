// SPDX-License-Identifier: MPL-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
)

// junitOf is what tests/tally counts: a test for each case.
func junitOf(outcomes []Outcome) string {
	var text bytes.Buffer
	text.WriteString("<testsuites><testsuite name=\"model\">\n")
	for _, o := range outcomes {
		class := "model"
		if o.Planned {
			class = "model.planned"
		}
		fmt.Fprintf(&text, "<testcase classname=\"%s\" name=\"%s\" time=\"%.3f\">", class,
			escaped(o.Name), o.Took.Seconds())
		if o.Unexpected != "" {
			fmt.Fprintf(&text, "<failure message=\"%s\">%s</failure>", escaped(o.Unexpected),
				escaped(strings.Join(o.Trace, "\n")))
		}
		text.WriteString("</testcase>\n")
	}
	text.WriteString("</testsuite></testsuites>\n")
	return text.String()
}

func escaped(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes all
	return b.String()
}
