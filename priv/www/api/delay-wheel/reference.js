// SPDX-License-Identifier: MPL-2.0

// Makes a page of openapi.json, which lies beside it. Text is put in as text.

(function () {
'use strict';

const METHODS = ['get', 'put', 'delete', 'post'];

function element(name, ...content) {
    const made = document.createElement(name);
    made.append(...content);
    return made;
}

// `...` is code.
function prose(text) {
    return text.split('`').map((part, n) => n % 2 ? element('code', part) : part);
}

function reader(api) {
    // What a reference stands for.
    const resolved = value => value.$ref
        ? resolved(value.$ref.split('/').slice(1).reduce((within, name) => within[name], api))
        : value;

    const type = schema => {
        const {oneOf, enum: words, items, type: name, minimum, maximum} = resolved(schema);
        if (oneOf) return [...new Set(oneOf.map(type))].join(' or ');
        if (words) return words.map(word => JSON.stringify(word)).join(' or ');
        if (items) return `array of ${type(items)}`;
        if (maximum !== undefined) return `${name}, ${minimum} to ${maximum}`;
        return name || 'any value';
    };

    const named = (name, schema, isRequired, description) => {
        const value = resolved(schema);
        const text = description || value.description;
        return [element('dt', element('code', name), ` ${type(schema)}${isRequired ? ', required' : ''}`),
                ...(text ? [element('dd', ...prose(text))] : [])];
    };

    const members = schema => {
        const {oneOf, properties = {}, required = []} = resolved(schema);
        if (oneOf) {
            return oneOf.flatMap((each, n) => [...(n ? [element('dt', 'or')] : []), ...members(each)]);
        }
        return Object.entries(properties).flatMap(
            ([name, value]) => named(name, value, required.includes(name)));
    };

    const unfolded = (title, entries) => entries.length
        ? [element('details', element('summary', title), element('dl', ...entries))]
        : [];

    const row = (path, method, operation) => {
        const parameters = (operation.parameters || []).map(resolved);
        const body = resolved(operation.requestBody || {}).content;
        return element(
            'tr', element('td', method.toUpperCase()), element('td', `/api${path}`),
            element(
                'td', element('strong', operation.summary), ...(operation.description
                    ? [element('br'), ...prose(operation.description)] : []),
                ...unfolded('Parameters', parameters.flatMap(
                    ({name, schema, required, description}) => named(name, schema, required, description))),
                ...unfolded('Body', body ? members(body['application/json'].schema) : []),
                ...unfolded('Answers', Object.entries(operation.responses).flatMap(
                    ([status, answer]) => [element('dt', element('code', status)),
                                           element('dd', ...prose(resolved(answer).description))]))));
    };

    return () => Object.entries(api.paths).flatMap(
        ([path, operations]) => METHODS.filter(method => operations[method])
            .map(method => row(path, method, operations[method])));
}

fetch('openapi.json')
    .then(answer => {
        if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
        return answer.json();
    })
    .then(api => {
        document.getElementById('introduction').append(...prose(api.info.description));
        const table = document.getElementById('operations');
        table.tBodies[0].append(...reader(api)());
        table.hidden = false;
    })
    .catch(error => {
        const failed = document.getElementById('failed');
        failed.textContent = `openapi.json cannot be read: ${error.message}`;
        failed.hidden = false;
    });
})();
