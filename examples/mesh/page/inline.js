// One file that needs no other: the script goes into the page.
import { readFileSync, writeFileSync } from "node:fs";

const script = readFileSync("build/page.js", "utf8").replaceAll("</script", "<\\/script");
const page = readFileSync("index.html", "utf8");
writeFileSync("build/page.html", page.replace('<script type="module" src="build/page.js"></script>', () => `<script type="module">${script}</script>`));
