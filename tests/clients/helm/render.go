// Renders the chart as Helm would: by Go's templates with sprig's functions, which is what Helm is made of, and the few that
// Helm adds itself, as far as the chart uses them. Debian has these and no Helm.
//
//	render CHART [VALUES…]
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type table = map[string]interface{}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(path string) (found table) {
	text, err := os.ReadFile(path)
	check(err)
	check(yaml.Unmarshal(text, &found))
	return found
}

// Lays one set of values over another, table by table.
func lay(over, values table) {
	for key, value := range over {
		upper, isTable := value.(table)
		lower, wasTable := values[key].(table)
		if isTable && wasTable {
			lay(upper, lower)
		} else {
			values[key] = value
		}
	}
}

// Chart.yaml's keys as templates name them.
func capitalised(found table) table {
	named := table{}
	for key, value := range found {
		named[strings.ToUpper(key[:1])+key[1:]] = value
	}
	return named
}

func main() {
	chart := os.Args[1]
	values := read(filepath.Join(chart, "values.yaml"))
	for _, path := range os.Args[2:] {
		lay(read(path), values)
	}
	root := template.New("chart").Option("missingkey=error")
	functions := sprig.TxtFuncMap()
	functions["toYaml"] = func(value interface{}) string {
		var text bytes.Buffer
		encoder := yaml.NewEncoder(&text)
		encoder.SetIndent(2)
		check(encoder.Encode(value))
		return strings.TrimSuffix(text.String(), "\n")
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var text bytes.Buffer
		err := root.ExecuteTemplate(&text, name, data)
		return text.String(), err
	}
	root.Funcs(functions)
	const base = "tidelock/templates"
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(err)
		_, err = root.New(base + "/" + filepath.Base(file)).Parse(string(text))
		check(err)
	}
	data := table{
		"Values":   values,
		"Chart":    capitalised(read(filepath.Join(chart, "Chart.yaml"))),
		"Release":  table{"Name": "site", "Namespace": "mirror", "Service": "Helm"},
		"Template": table{"BasePath": base},
	}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var text bytes.Buffer
		check(root.ExecuteTemplate(&text, base+"/"+name, data))
		if filepath.Ext(name) == ".yaml" {
			fmt.Printf("---\n%s\n", strings.TrimSpace(text.String()))
		}
	}
}
