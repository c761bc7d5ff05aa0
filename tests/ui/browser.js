// SPDX-License-Identifier: MPL-2.0
// A headless Chromium for tests in another language: reads calls from standard input, a JSON object
// a line, and answers each with a line. {page, method, args} calls what is in METHODS, or else the
// method of Playwright's Page; the answer is {value} or {error}.

import readline from 'node:readline';
import { chromium } from 'playwright-core';

const TIMEOUT_MS = 120000;
const LOADED_TIMES = 5;

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: ['--no-sandbox', '--headless', '--disable-dev-shm-usage', '--disable-gpu', '--disable-quic',
           '--no-first-run', '--disable-background-networking', '--disable-component-update',
           '--disable-sync'],
});
const tabs = new Map();

const METHODS = {
    // A page with its own cookies and storage; what it asks and what goes wrong in it is kept.
    async open(name, url) {
        const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
        const page = await context.newPage();
        page.setDefaultTimeout(TIMEOUT_MS);
        const tab = { page, asked: [], errors: [], unloaded: [], accepts: true };
        page.on('dialog', async (dialog) => {
            tab.asked.push(dialog.message());
            await (tab.accepts ? dialog.accept() : dialog.dismiss());
        });
        page.on('pageerror', (error) => tab.errors.push(String(error)));
        page.on('console', (message) => {
            if (message.text().startsWith('Uncaught error')) tab.errors.push(message.text());
        });
        page.on('requestfailed', (request) => {
            if (request.resourceType() === 'script') {
                tab.unloaded.push(`${request.url()}: ${request.failure().errorText}`);
            }
        });
        tabs.set(name, tab);
        await METHODS.load(name, url);
    },
    // Makes a page anew, and again if a connection was lost over one of its scripts, as a user would: a broker that
    // is slow to answer closes connections. What went wrong for lack of that script does not count.
    async load(name, url) {
        const tab = tabs.get(name);
        for (let times = 1; ; times++) {
            await tab.page.goto('about:blank');
            const before = tab.errors.length;
            tab.unloaded = [];
            await tab.page.goto(url);
            if (tab.unloaded.length === 0) return;
            if (times === LOADED_TIMES) throw new Error(`not loaded: ${tab.unloaded.join(', ')}`);
            tab.errors.length = before;
        }
    },
    // The next request for it gets no answer.
    async lose(name, pattern) {
        await tabs.get(name).page.route(pattern, (route) => route.abort('connectionreset'), { times: 1 });
    },
    async close(name) {
        await tabs.get(name).page.context().close();
        tabs.delete(name);
    },
    // What was asked since the last call; later questions are answered so.
    async asked(name, accepts) {
        const tab = tabs.get(name);
        tab.accepts = accepts;
        return tab.asked.splice(0);
    },
    // What went wrong since the last call.
    async errors(name) {
        return tabs.get(name).errors.splice(0);
    },
    async texts(name, selector) {
        return tabs.get(name).page.locator(selector).allInnerTexts();
    },
    async count(name, selector) {
        return tabs.get(name).page.locator(selector).count();
    },
};

const PLAIN = new Set(['string', 'number', 'boolean']);

for await (const line of readline.createInterface({ input: process.stdin })) {
    const { page, method, args } = JSON.parse(line);
    let answer;
    try {
        const value = method in METHODS ? await METHODS[method](page, ...args)
                                        : await tabs.get(page).page[method](...args);
        answer = { value: PLAIN.has(typeof value) || Array.isArray(value) ? value : null };
    } catch (error) {
        answer = { error: String(error) };
    }
    process.stdout.write(JSON.stringify(answer) + '\n');
}
await browser.close();
