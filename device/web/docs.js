// The API as the daemon itself describes it.

const main = document.querySelector("main");

function add(parent, tag, text = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  return parent.appendChild(element);
}

const kind = (schema = {}) => (schema.enum ? schema.enum.join(" | ") : (schema.type ?? "see openapi.json"));

function describe(path, method, { summary, description, parameters = [], requestBody, responses }, schemas) {
  const article = add(main, "article");
  const heading = add(article, "h2");
  add(heading, "code", `${method.toUpperCase()} ${path}`);
  heading.append(` ${summary}`);
  if (description) add(article, "p", description);
  for (const { name, schema } of parameters) {
    add(article, "p", `${name}: ${kind(schema)} (default: ${schema.default ?? "none"})`);
  }
  const body = requestBody?.content["application/json"].schema.$ref?.split("/").pop();
  for (const [name, schema] of Object.entries(schemas[body]?.properties ?? {})) {
    add(article, "p", `JSON body, ${name}: ${kind(schema)}`);
  }
  add(article, "p", `Answers: ${Object.entries(responses).map(([code, it]) => `${code} ${it.description}`).join(", ")}`);
}

const api = await (await fetch("openapi.json")).json();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) describe(path, method, operation, api.components?.schemas ?? {});
}
